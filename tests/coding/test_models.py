"""Each coder against an oracle: brute force, closed form, or the entropy that NumPy computes."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kogata.coding import CODERS, Budget, Coder, Plane, encode
from kogata.coding.adaptive import Adaptive
from kogata.coding.context import Context
from kogata.coding.huffman import MAX_LENGTH, Huffman, code_lengths
from kogata.coding.kernels import mixing
from kogata.coding.rans import SCALE, StaticRans, normalised
from kogata.coding.relative import Relative

COUNTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(lambda counts: sum(c > 0 for c in counts) > 1)


def entropy_bytes(array: NDArray[np.generic]) -> float:
    p = np.unique(array, return_counts=True)[1] / array.size
    return float(array.size * -(p * np.log2(p)).sum() / 8)


def huffman_cost(counts: list[int]) -> int:
    """Bits of an unlimited Huffman code: the sum of all merged weights, by Huffman's own procedure."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


@settings(max_examples=200, deadline=None)
@given(counts=COUNTS)
def test_huffman_lengths_form_a_complete_code_and_are_optimal_where_the_limit_does_not_bind(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    used = lengths[np.array(counts) > 0].astype(int)
    assert np.all((lengths > 0) == (np.array(counts) > 0))
    assert used.max() <= MAX_LENGTH
    assert sum(1 << (MAX_LENGTH - length) for length in used.tolist()) == 1 << MAX_LENGTH
    cost = int(np.array(counts) @ lengths)
    assert cost >= huffman_cost(counts)
    if used.max() < MAX_LENGTH:
        assert cost == huffman_cost(counts)


def test_limited_huffman_lengths_are_the_best_of_all_limited_ones() -> None:
    """Twenty Fibonacci counts want codes of 19 bits; a search over all trees of 16 levels finds the least cost."""
    counts = [1, 1]
    while len(counts) < 20:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == MAX_LENGTH
    assert int(np.array(counts) @ lengths) == _limited_cost(sorted(counts, reverse=True), MAX_LENGTH)


def _limited_cost(counts: list[int], limit: int) -> int:
    """Least cost over all complete trees of depth ``limit``: how many open nodes become leaves at each level."""
    best: dict[tuple[int, int], int] = {(0, 1): 0}  # symbols placed, nodes open at this depth
    least = math.inf
    for _ in range(limit + 1):
        following: dict[tuple[int, int], int] = {}
        for (placed, open_nodes), cost in best.items():
            for leaves in range(min(open_nodes, len(counts) - placed) + 1):
                now, inner = placed + leaves, open_nodes - leaves
                if now == len(counts) and inner == 0:
                    least = min(least, cost)
                elif inner > 0 and 2 * inner <= len(counts) - now:
                    state = now, 2 * inner
                    total = cost + sum(counts[now:])  # every symbol not yet placed goes one level deeper
                    following[state] = min(total, following.get(state, total))
        best = following
    return int(least)


def test_huffman_codes_65536_symbols_of_which_each_occurs() -> None:
    lengths = code_lengths(np.ones(65536, np.int64))
    assert np.all(lengths == 16)


@settings(max_examples=100, deadline=None)
@given(counts=st.one_of(COUNTS, st.lists(st.integers(0, 30), min_size=100, max_size=256).filter(any)))
def test_frequencies_sum_to_the_scale_and_no_move_of_one_unit_is_cheaper(counts: list[int]) -> None:
    weights = np.array(counts)
    freqs = normalised(weights)
    assert freqs.sum() == SCALE
    assert np.all((freqs > 0) == (weights > 0))
    used = np.flatnonzero(weights)
    gains = weights[used] * np.log((freqs[used] + 1) / freqs[used])
    with np.errstate(divide="ignore"):
        losses = np.where(freqs[used] > 1, weights[used] * np.log(freqs[used] / (freqs[used] - 1)), np.inf)
    # Convex and separable: if no single exchange helps, nothing does.
    assert losses.min() >= gains.max() * (1 - 1e-9)


@pytest.mark.parametrize("alphabet", [16, 32])
def test_static_rans_stays_within_a_thousandth_of_the_entropy_and_its_table(alphabet: int) -> None:
    rng = np.random.default_rng(1)
    symbols = rng.choice(alphabet, 500_000, p=rng.dirichlet(np.ones(alphabet)))
    data = StaticRans().encode(Plane.symbols(symbols, alphabet))
    assert data is not None
    assert entropy_bytes(symbols) - 1 <= len(data) <= 1.001 * entropy_bytes(symbols) + 32 + 2 * alphabet


def test_huffman_needs_what_its_lengths_say(shared_indices: NDArray[np.uint8]) -> None:
    plane = Plane.symbols(shared_indices, 16)
    data = Huffman().encode(plane)
    assert data is not None
    body = math.ceil(huffman_cost(plane.counts().tolist()) / 8)
    assert body < len(data) <= body + 16


def test_adaptive_coding_costs_what_krichevsky_and_trofimov_say() -> None:
    """Their estimator gives a sequence of a zeros and b ones the probability G(a+1/2) G(b+1/2) / (pi (a+b)!)."""
    rng = np.random.default_rng(2)
    for density in (0.5, 0.1, 0.02):
        mask = rng.random(900) < density
        ones = int(mask.sum())
        zeros = mask.size - ones
        log_p = math.lgamma(zeros + 0.5) + math.lgamma(ones + 0.5) - math.log(math.pi) - math.lgamma(mask.size + 1)
        data = Adaptive().encode(Plane.mask(mask))
        assert data is not None
        assert abs(len(data) - -log_p / math.log(2) / 8) <= 2


def test_small_planes_are_coded_adaptively_and_close_to_their_entropy(shared_indices: NDArray[np.uint8]) -> None:
    plane = Plane.symbols(shared_indices[:500], 16)
    coded = encode(plane)
    assert coded.coder == "adaptive"
    assert len(coded.data) <= entropy_bytes(plane.array) + 12


def test_relative_indices_cost_the_entropy_of_the_gaps() -> None:
    mask = np.random.default_rng(3).random(200_000) < 0.05
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    data = Relative().encode(Plane.mask(mask))
    assert data is not None
    assert len(data) <= 1.01 * entropy_bytes(np.minimum(gaps, 255)) + 200


def test_context_mixing_finds_structure_in_a_mask(pruned_mask: NDArray[np.bool_]) -> None:
    plane = Plane.mask(pruned_mask)
    coded = encode(plane)
    assert coded.coder == "context mixing"
    assert len(coded.data) <= 0.9 * plane.entropy_bits() / 8
    shuffled = np.random.default_rng(4).permutation(pruned_mask.ravel()).reshape(pruned_mask.shape)
    assert len(encode(Plane.mask(shuffled)).data) >= 0.98 * plane.entropy_bits() / 8


def test_context_mixing_is_not_chosen_for_a_gain_under_its_threshold(shared_indices: NDArray[np.uint8]) -> None:
    plane = Plane.symbols(shared_indices, 16)  # independent draws: there is nothing to find
    data = Context().encode(plane)
    assert data is not None
    assert len(data) <= 1.02 * plane.entropy_bits() / 8
    assert encode(plane).coder != "context mixing"


def test_context_mixing_learns_rows_and_columns_of_symbols() -> None:
    rng = np.random.default_rng(5)
    spread = rng.uniform(0.2, 4, (1, 60))
    symbols = np.clip(np.round(rng.normal(size=(300, 60)) * spread + 8), 0, 15).astype(np.uint8)
    data = Context().encode(Plane.symbols(symbols, 16))
    assert data is not None
    # Every column's histogram known and free is the bound; 60 columns must be learned, which costs a few percent.
    assert len(data) <= 1.05 * sum(entropy_bytes(symbols[:, column]) for column in range(60))


def test_squash_and_stretch_are_the_logistic_function_and_its_inverse() -> None:
    squash, stretch = mixing.logistic_tables()
    odds = np.arange(-mixing.ODDS_LIMIT, mixing.ODDS_LIMIT + 1)
    assert np.all(np.abs(squash - 65536 / (1 + np.exp(-odds / 256))) <= 1)
    p = np.arange(1, 65536)
    assert np.all(np.abs(squash[stretch[p] + mixing.ODDS_LIMIT] - p) <= np.maximum(1, 65536 / 256 / 4))


@pytest.mark.parametrize(
    ("plane", "bits"),
    [
        (Plane.symbols(np.array([0, 1, 2, 3] * 5), 9), 40.0),
        (Plane.symbols(np.zeros(7, np.int64), 9), 0.0),
        (Plane.symbols(np.zeros(0, np.int64), 9), 0.0),
        (Plane.mask(np.arange(8) < 2), 8 * (0.25 * 2 + 0.75 * math.log2(4 / 3))),
        (Plane.floats(np.zeros(3, np.float16)), 48.0),
        (Plane.integers(np.array([-5, -5, 10**12, 10**12])), 4.0),
    ],
)
def test_entropy_has_its_closed_form(plane: Plane, bits: float) -> None:
    assert plane.entropy_bits() == pytest.approx(bits)


def test_small_and_empty_planes_carry_almost_nothing_but_their_content() -> None:
    assert len(encode(Plane.floats(np.random.default_rng(6).random(3).astype(np.float32))).data) == 13
    assert len(encode(Plane.mask(np.zeros((0, 4), np.bool_))).data) == 1
    assert len(encode(Plane.symbols(np.full(10**6, 3), 16)).data) <= 8
    assert len(encode(Plane.mask(np.ones(10**6, np.bool_))).data) <= 8


def test_tags_and_names_are_unique() -> None:
    assert len({coder.tag for coder in CODERS}) == len({coder.name for coder in CODERS}) == len(CODERS)


@pytest.mark.parametrize(
    ("coder", "written"),
    [
        (Adaptive(), "f9b61df829d4aa7ae1172601e6f40820"),
        (Huffman(), "04e67f3ac3e93cdc359d87bba6f370d7741e00"),
        (StaticRans(), "04653b5ea399cd66366bd60ca0305d2428347424a469b517f7ff8124cd3ae9143506df148cf60e20c85cde14"),
        (Context(), "fad2e5bdf5bc37d92c4887aec37b"),
    ],
    ids=lambda value: value.name if isinstance(value, Coder) else "",
)
def test_the_bytes_of_symbols_never_change(coder: Coder, written: str) -> None:
    """What the first version wrote, all others must read, on every machine."""
    plane = Plane.symbols((np.arange(40) * np.arange(40) % 11).astype(np.uint8), 11)
    assert coder.encode(plane) == bytes.fromhex(written)
    assert np.array_equal(coder.decode(bytes.fromhex(written), plane.spec, Budget()), plane.array)


@pytest.mark.parametrize(
    ("coder", "written"),
    [(Relative(), "0603ff804f"), (Adaptive(), "7fcc95aeaaaf"), (Context(), "0249d9ca1a1999")],
    ids=lambda value: value.name if isinstance(value, Coder) else "",
)
def test_the_bytes_of_a_mask_never_change(coder: Coder, written: str) -> None:
    plane = Plane.mask((np.arange(300) % 50 == 0).reshape(15, 20))
    assert coder.encode(plane) == bytes.fromhex(written)
    assert np.array_equal(coder.decode(bytes.fromhex(written), plane.spec, Budget()), plane.array)

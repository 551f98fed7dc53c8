"""Sums, shared sub-vectors and tied entries against loops in NumPy, their files, and what a hostile file could claim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kogata.forms import Codebook, Dense, Form, Masked, Role
from kogata.forms.combined import Sum
from kogata.forms.tied import MAPS, Hash, Tied
from kogata.forms.vectors import Vectors
from tests.forms.test_forms import leaf, rebuilt


def vectors(shape: tuple[int, ...] = (6, 7), length: int = 3, clusters: int = 4) -> Vectors:
    spaces = -(-int(np.prod(shape[1:])) // length)
    return Vectors.of(torch.randint(0, clusters, (shape[0], spaces)), torch.randn(spaces, clusters, length), shape)


def tied(shape: tuple[int, ...] = (6, 7), size: int = 9) -> Tied:
    return Tied(Hash(5), Dense(torch.randn(size), Role.VALUES), shape)


def summed() -> Sum:
    return Sum([vectors(), Dense(torch.randn(6, 7), Role.MATRIX), tied()])


def nested() -> Form:
    """Buckets of which some are zero and the others share values, plus shared sub-vectors of half the size."""
    kept = Codebook.of(torch.randint(0, 2, (5,)), torch.tensor([-1.0, 0.3]))
    return Sum([Tied(Hash(0), Masked(torch.tensor([0, 2, 3, 6, 8], dtype=torch.int32), kept, (9,)), (6, 7)), vectors()])


MAKERS = [vectors, tied, summed, nested, lambda: vectors((5, 2, 3, 3), 4), lambda: tied((4, 2, 3, 3), 20)]


@pytest.mark.parametrize("make", MAKERS)
def test_rebuilt_bit_for_bit(make: Any) -> None:
    form = make()
    twin = rebuilt(form)
    assert torch.equal(twin.dense(), form.dense())
    assert twin.describe() == form.describe()
    assert twin.shape == form.shape == form.dense().shape
    assert twin.state_dict().keys() == form.state_dict().keys()
    assert [part.role for _, part in twin.leaves()] == [part.role for _, part in form.leaves()]
    assert twin.stored_bits() == form.stored_bits() > 0


@pytest.mark.parametrize("make", MAKERS)
def test_gradient_is_that_of_finite_differences(make: Any) -> None:
    form = make().double()
    names = [name for name, _ in form.named_parameters()]

    def dense(*values: Tensor) -> Tensor:
        return torch.func.functional_call(form, dict(zip(names, values, strict=True)), (torch.zeros(0).double(),))

    assert torch.autograd.gradcheck(dense, tuple(p.detach().clone().requires_grad_() for p in form.parameters()))


@pytest.mark.parametrize(("shape", "length"), [((5, 6), 3), ((5, 7), 3), ((5, 3), 3), ((4, 2, 3, 3), 5), ((4, 1), 1)])
def test_vectors_by_loops(shape: tuple[int, ...], length: int) -> None:
    form = vectors(shape, length)
    index, table = form.index.numpy(), form.table.dense().detach().numpy()
    columns = int(np.prod(shape[1:]))
    wanted = np.zeros((shape[0], columns), np.float32)
    for o in range(shape[0]):
        for i in range(columns):
            wanted[o, i] = table[i // length, index[o, i // length], i % length]
    np.testing.assert_array_equal(form.dense().detach().numpy(), wanted.reshape(shape))


def test_a_vector_s_gradient_is_the_sum_of_its_copies() -> None:
    form = vectors((6, 7), 3)
    direction = torch.randn(6, 7)
    (form.dense() * direction).sum().backward()
    gradient = form.get_submodule("table").get_parameter("values").grad
    assert gradient is not None
    padded = torch.nn.functional.pad(direction, (0, 2)).reshape(6, 3, 3)
    for s in range(3):
        for k in range(4):
            torch.testing.assert_close(gradient[s, k], padded[form.index[:, s] == k, s].sum(0))


def test_sum_is_a_sum() -> None:
    terms = [torch.randn(3, 4) for _ in range(3)]
    form = Sum([Dense(term, Role.MATRIX) for term in terms])
    np.testing.assert_array_equal(form.dense().detach().numpy(), (terms[0].numpy() + terms[1].numpy()) + terms[2].numpy())
    assert form.kept() == 36
    assert form.stored_bits() == sum(part.stored_bits() for part in form.parts().values()) > 0


def mix(x: int) -> int:
    """The hash in whole numbers of Python, reduced modulo 2**32 by hand."""
    x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
    x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_hash_in_whole_numbers(seed: int) -> None:
    shape, size = (7, 3, 11), 50
    index, sign = Hash(seed).index(shape, size)
    assert index.dtype == torch.int32
    assert sign.dtype == torch.int8
    assert index.shape == sign.shape == shape
    for p, (k, s) in enumerate(zip(index.flatten().tolist(), sign.flatten().tolist(), strict=True)):
        h = mix(p ^ mix(seed))
        assert (k, s) == (h * size // 2**32, 1 if h % 2 == 0 else -1)


def test_the_map_in_a_file_never_changes() -> None:
    """A file stores the seed alone: another hash in a later version would scramble it."""
    index, sign = Hash(1234).index((8,), 1000)
    assert index.tolist() == [439, 406, 212, 918, 579, 156, 289, 946]
    assert sign.tolist() == [1, -1, 1, 1, -1, -1, 1, 1]


def test_hash_spreads_evenly_and_signs_are_independent() -> None:
    """χ² of 500 buckets, and of the signs in each, within five standard deviations of what chance gives."""
    index, sign = Hash(3).index((400, 500), 500)
    counts = np.bincount(index.flatten().numpy(), minlength=500)
    chi = float(((counts - 400) ** 2 / 400).sum())
    assert abs(chi - 499) < 5 * np.sqrt(2 * 499)
    totals = np.bincount(index.flatten().numpy(), weights=sign.flatten().numpy(), minlength=500)
    chi = float((totals**2 / counts).sum())
    assert abs(chi - 500) < 5 * np.sqrt(2 * 500)
    rows = index.numpy()
    assert abs(float((rows[1:] == rows[:-1]).mean()) - 1 / 500) < 5 * np.sqrt(1 / 500 / rows.size)
    assert float((Hash(4).index((400, 500), 500)[0] == index).float().mean()) < 0.01


def test_tied_by_loops() -> None:
    form = tied()
    index, sign, base = form.index.numpy(), form.sign.numpy(), form.base.dense().detach().numpy()
    wanted = np.array([[sign[i, j] * base[index[i, j]] for j in range(7)] for i in range(6)])
    np.testing.assert_array_equal(form.dense().detach().numpy(), wanted)


def test_the_map_is_not_stored() -> None:
    form = tied((60, 70), 9)
    assert form.stored_bits() == 9 * 32
    assert form.kept() == 9
    assert set(form.state_dict()) == {"base.values"}


def test_the_base_is_the_least_squares_solution() -> None:
    weight = torch.randn(5, 8, dtype=torch.float64)
    form = Tied.of(Hash(7), weight, (12,))
    design = np.zeros((40, 12))
    index, sign = Hash(7).index((5, 8), 12)
    design[np.arange(40), index.flatten().numpy()] = sign.flatten().numpy()
    wanted = np.linalg.lstsq(design, weight.flatten().numpy(), rcond=None)[0]  # of least norm: empty buckets are 0
    np.testing.assert_allclose(form.base.dense().detach().numpy(), wanted, atol=1e-12)


def test_every_map_has_its_own_name() -> None:
    assert len({kind.__name__.lower() for kind in MAPS}) == len(MAPS)


INDEX = np.zeros((4, 2), np.uint8)
HASH = ["hash", {"seed": 0}]


@pytest.mark.parametrize(
    ("kind", "header", "planes", "parts"),
    [
        (Sum, {}, {}, {}),
        (Sum, {}, {}, {"terms.0": leaf(2, 3), "terms.1": leaf(3, 2)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX}, {}),
        (Vectors, {"shape": [4, 5]}, {}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX}, {"table": leaf(2, 9)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX.ravel()}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4, 7]}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),  # two sub-vectors of three are too short
        (Vectors, {"shape": [4, 3]}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),  # and here the second is all padding
        (Vectors, {"shape": [5, 5]}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX}, {"table": leaf(3, 3, 3)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX + 3}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4, 5]}, {"index": INDEX.astype(np.int16) - 1}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4]}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [-4, -5]}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [4, 2.5]}, {"index": INDEX}, {"table": leaf(2, 3, 2)}),
        (Vectors, {"shape": "45"}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),
        (Vectors, {"shape": [1 << 20, 1 << 12]}, {"index": np.zeros((1 << 20, 1), np.uint8)}, {"table": leaf(1, 1, 1 << 12)}),
        (Vectors, {}, {"index": INDEX}, {"table": leaf(2, 3, 3)}),
        (Tied, {"map": ["king", {}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": ["hash", {"seed": -1}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": ["hash", {"seed": "0"}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": ["hash", {"seed": 0, "salt": 1}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": ["hash", {}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": [["hash"], {"seed": 0}], "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": "hash", "shape": [4, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": HASH, "shape": [4, 5]}, {}, {}),
        (Tied, {"map": HASH, "shape": [4, 5]}, {}, {"base": leaf(0)}),
        (Tied, {"map": HASH, "shape": [4, 5]}, {}, {"base": leaf(21)}),
        (Tied, {"map": HASH, "shape": [-4, -5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": HASH, "shape": [4.0, 5]}, {}, {"base": leaf(3)}),
        (Tied, {"map": HASH, "shape": []}, {}, {"base": leaf(1)}),
        (Tied, {"map": HASH, "shape": [1 << 16, 1 << 16]}, {}, {"base": leaf(3)}),
        (Tied, {"shape": [4, 5]}, {}, {"base": leaf(3)}),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(
    kind: type[Form], header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]
) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        kind.restore(header, planes, parts)

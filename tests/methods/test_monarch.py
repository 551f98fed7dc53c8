"""Monarch matrices against two block-diagonal matrices and a shuffle, the SVD of each block, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.structured_layers import MonarchLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.methods.structured.monarch import Monarch
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_projection, assert_refused, encoded, lowered, squared_error


def two_factors(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Block-diagonal, shuffle, block-diagonal, shuffle, each as a matrix; left ``[J, L, K, R]``, right ``[K, J, R, I]``."""
    outputs, high, inputs, rank = left.shape
    wide = right.shape[3]
    first = np.zeros((inputs * outputs * rank, inputs * wide))
    for k in range(inputs):
        first[k * outputs * rank : (k + 1) * outputs * rank, k * wide : (k + 1) * wide] = right[k].reshape(-1, wide)
    shuffle = np.zeros((len(first), len(first)))
    for k in range(inputs):
        for j in range(outputs):
            for r in range(rank):
                shuffle[(j * inputs + k) * rank + r, (k * outputs + j) * rank + r] = 1
    second = np.zeros((outputs * high, len(first)))
    for j in range(outputs):
        second[j * high : (j + 1) * high, j * inputs * rank : (j + 1) * inputs * rank] = left[j].reshape(high, -1)
    last = np.zeros((outputs * high, outputs * high))
    for j in range(outputs):
        for part in range(high):
            last[part * outputs + j, j * high + part] = 1
    return last @ second @ shuffle @ first


@pytest.mark.parametrize(("blocks", "rank"), [(4, 1), (4, 2), (2, 3), (None, 1)])
def test_the_form_is_two_block_diagonal_matrices(blocks: int | None, rank: int) -> None:
    form = encoded(Monarch(blocks=blocks, rank=rank), torch.randn(24, 36))
    left, right = (part.dense().detach().double().numpy() for part in form.parts().values())
    assert_near(form.dense(), torch.from_numpy(two_factors(left, right)), 1e-6)


@pytest.mark.parametrize(("rank", "shape"), [(1, (24, 36)), (2, (24, 36)), (1, (36, 16))])
def test_a_monarch_matrix_is_recovered(rank: int, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    high, wide = shape[0] // 4, shape[1] // 4
    matrix = two_factors(generator.standard_normal((4, high, 4, rank)), generator.standard_normal((4, 4, rank, wide)))
    weight = torch.from_numpy(matrix).float()
    assert_near(encoded(Monarch(blocks=4, rank=rank), weight).dense(), weight, 1e-5)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(24, 36), (36, 24)])
def test_error_is_the_sum_of_the_tails_of_all_blocks(rank: int, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    matrix, wide = weight.double().numpy(), shape[1] // 4
    blocks = [matrix[j::4, k * wide : (k + 1) * wide] for j in range(4) for k in range(4)]
    tail = sum(float((np.linalg.svd(block, compute_uv=False)[rank:] ** 2).sum()) for block in blocks)
    form = encoded(Monarch(blocks=4, rank=rank), weight)
    assert squared_error(form, weight) == pytest.approx(tail, rel=1e-4)
    assert_projection(form, weight)


def test_sides_take_the_nearest_divisor() -> None:
    left, right = encoded(Monarch(blocks=16), torch.randn(300, 784)).parts().values()
    assert left.shape == (15, 20, 16, 1)
    assert right.shape == (16, 15, 1, 49)


@pytest.mark.parametrize(("outputs", "inputs", "blocks", "rank", "residual"), [(300, 784, 16, 1, 3), (512, 256, None, 2, 0)])
def test_fast_layers_equal_the_dense_layer(
    outputs: int, inputs: int, blocks: int | None, rank: int, residual: int, tmp_path: Path
) -> None:
    eager, exported = lowered(Monarch(blocks=blocks, rank=rank, residual=residual), outputs, inputs, tmp_path)
    assert_is(MonarchLinear, eager)
    assert_is(MonarchLinear, exported)


def test_damaged_headers_are_refused() -> None:
    form = encoded(Monarch(blocks=4), torch.randn(24, 36))
    equations = ["jlkr,kjri->ljk", "jlkr,kjxi,xy->ljki", "jlkr,jkri->ljkij", 3]
    shapes = [[24, 37], [0, 36], [-24, -36], [1 << 20, 1 << 20]]
    assert_refused(form, [*({"equation": e} for e in equations), *({"shape": shape} for shape in shapes)])


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no divisor near"):
        encoded(Monarch(blocks=4), torch.randn(97, 36))
    with pytest.raises(NotApplicable, match="above the full rank 6"):
        encoded(Monarch(blocks=4, rank=7), torch.randn(24, 36))
    with pytest.raises(NotApplicable, match="no fewer than the 864"):
        encoded(Monarch(blocks=4, rank=4), torch.randn(24, 36))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(Monarch(), torch.randn(12, 1, 3, 3))
    with pytest.raises(DataError, match="NaN"):
        encoded(Monarch(), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"blocks": 1}, {"blocks": 0}, {"rank": 0}, {"residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="monarch: "):
        Monarch(**settings)

"""Block-diagonal weights against explicit blocks, the entries beside them, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.structured_layers import BlockDiagonalLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.methods.structured.block_diagonal import BlockDiagonal
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_refused, encoded, lowered, squared_error


def beside(outputs: int, inputs: int, blocks: int) -> np.ndarray:
    """Whether an entry is in no block."""
    mask = np.ones((outputs, inputs), bool)
    high, wide = -(-outputs // blocks), -(-inputs // blocks)
    for k in range(blocks):
        mask[k * high : (k + 1) * high, k * wide : (k + 1) * wide] = False
    return mask


@pytest.mark.parametrize(("outputs", "inputs", "blocks"), [(12, 20, 4), (13, 20, 4), (10, 9, 3), (8, 8, 8)])
def test_blocks_stay_and_the_rest_is_zero(outputs: int, inputs: int, blocks: int) -> None:
    weight = torch.randn(outputs, inputs)
    mask = beside(outputs, inputs, blocks)
    form = encoded(BlockDiagonal(blocks=blocks), weight)
    found = form.dense().detach().numpy()
    assert not found[mask].any()
    np.testing.assert_array_equal(found[~mask], weight.numpy()[~mask])
    assert squared_error(form, weight) == pytest.approx(float((weight.numpy()[mask].astype(float) ** 2).sum()), rel=1e-6)


def test_block_after_block_is_the_product_with_parts_of_the_input() -> None:
    weight, x = torch.randn(12, 20), torch.randn(20)
    found = encoded(BlockDiagonal(blocks=4), weight).dense() @ x
    wanted = torch.cat([weight[3 * k : 3 * k + 3, 5 * k : 5 * k + 5] @ x[5 * k : 5 * k + 5] for k in range(4)])
    assert_near(found, wanted, 1e-6)


def test_the_residual_is_the_svd_of_what_lies_beside() -> None:
    weight = torch.randn(24, 30)
    left = weight.double().numpy() * beside(24, 30, 6)
    tail = float((np.linalg.svd(left, compute_uv=False)[3:] ** 2).sum())
    assert squared_error(encoded(BlockDiagonal(blocks=6, residual=3), weight), weight) == pytest.approx(tail, rel=1e-4)


def test_entries_beside_the_blocks_have_no_gradient() -> None:
    form = encoded(BlockDiagonal(blocks=4), torch.randn(13, 18))
    ((_, leaf),) = form.leaves()
    slope = torch.randn(13, 18)
    (form.dense() * slope).sum().backward()
    assert leaf.values.grad is not None
    inside = slope[torch.from_numpy(~beside(13, 18, 4))]
    assert float(leaf.values.grad.double().square().sum()) == pytest.approx(float(inside.double().square().sum()), rel=1e-5)


@pytest.mark.parametrize(("outputs", "inputs", "blocks", "residual"), [(300, 784, 4, 0), (301, 503, 8, 3)])
def test_fast_layers_equal_the_dense_layer(outputs: int, inputs: int, blocks: int, residual: int, tmp_path: Path) -> None:
    eager, exported = lowered(BlockDiagonal(blocks=blocks, residual=residual), outputs, inputs, tmp_path)
    assert_is(BlockDiagonalLinear, eager)
    assert_is(BlockDiagonalLinear, exported)


def test_two_blocks_gain_too_little(tmp_path: Path) -> None:
    for layer in lowered(BlockDiagonal(blocks=2), 300, 400, tmp_path):
        assert_is(torch.nn.Linear, layer)


def test_damaged_headers_are_refused() -> None:
    form = encoded(BlockDiagonal(blocks=4), torch.randn(12, 16))
    maps = [["diagonal", {"blocks": blocks}] for blocks in (0, -4, 3, 2**40, 4.0, None)]
    assert_refused(form, [*({"map": map} for map in maps), *({"shape": s} for s in ([12, 20], [0, 16], [1 << 20, 1 << 20]))])


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="fewer than 16 entries"):
        encoded(BlockDiagonal(blocks=16), torch.randn(10, 100))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(BlockDiagonal(blocks=2), torch.randn(12, 1, 3, 3))
    with pytest.raises(NotApplicable, match="no fewer than"):
        encoded(BlockDiagonal(blocks=2, residual=9), torch.randn(16, 16))
    with pytest.raises(DataError, match="NaN"):
        encoded(BlockDiagonal(blocks=2), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"blocks": 1}, {"blocks": 0}, {"blocks": 2, "residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="block-diagonal: "):
        BlockDiagonal(**settings)

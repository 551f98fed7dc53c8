"""Circulant blocks against explicit loops, brute-force least squares over all of their vectors, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kogata.engines.lowering.transform_layers import CirculantLinear, CosineCirculantLinear, FourierCirculantLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms.structured_maps import Circulant
from kogata.forms.tied import Tied
from kogata.methods.structured.block_circulant import BlockCirculant
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_refused, encoded, lowered, squared_error


def by_loops(base: np.ndarray, sign: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    """Entry by entry, for vectors ``[P, Q, b]`` and signs ``[I]``."""
    block = base.shape[2]
    matrix = np.zeros((outputs, inputs))
    for o in range(outputs):
        for i in range(inputs):
            matrix[o, i] = base[o // block, i // block, (o % block - i % block) % block] * sign[i]
    return matrix


def parts(form: Tied) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(form.map, Circulant)
    return form.base.dense().detach().double().numpy(), form.map.signs(form.shape[1:].numel()).numpy()


@pytest.mark.parametrize("shape", [(12, 12), (10, 14), (14, 10), (24, 36)])
@pytest.mark.parametrize("block", [None, 4, 5])
def test_the_form_is_its_blocks_by_loops(shape: tuple[int, int], block: int | None) -> None:
    form = encoded(BlockCirculant(block=block), torch.randn(shape))
    assert isinstance(form, Tied)
    assert_near(form.dense(), torch.from_numpy(by_loops(*parts(form), *shape)), 1e-6)


@pytest.mark.parametrize(("shape", "block"), [((8, 8), None), ((6, 9), None), ((8, 12), 4), ((7, 10), 4)])
def test_no_vectors_are_nearer_than_the_means_of_the_signed_diagonals(shape: tuple[int, int], block: int | None) -> None:
    """Brute force: one column of a least-squares problem for each number of the base."""
    weight = torch.randn(shape)
    form = encoded(BlockCirculant(block=block), weight)
    assert isinstance(form, Tied)
    base, sign = parts(form)
    columns = [by_loops(unit.reshape(base.shape), sign, *shape).ravel() for unit in np.eye(base.size)]
    best = np.linalg.lstsq(np.stack(columns, 1), weight.double().numpy().ravel(), rcond=None)[0]
    np.testing.assert_allclose(base.ravel(), best, atol=1e-6)


def test_a_circulant_matrix_is_recovered() -> None:
    sign = Circulant(16, 0).signs(16)
    seeded = encoded(BlockCirculant(), torch.randn(16, 16))
    assert isinstance(seeded, Tied)
    base, sign = parts(seeded)
    weight = torch.from_numpy(by_loops(np.random.default_rng(0).standard_normal(base.shape), sign, 16, 16)).float()
    assert_near(encoded(BlockCirculant(), weight).dense(), weight, 1e-6)


def test_signs_are_of_both_kinds_and_the_same_everywhere() -> None:
    sign = Circulant(4, 7).signs(4096)
    assert abs(float(sign.double().mean())) < 0.05
    assert sign[:16].tolist() == Circulant(64, 7).signs(16).tolist()
    assert sign[:16].tolist() != Circulant(64, 8).signs(16).tolist()


def test_a_residual_only_helps() -> None:
    weight = torch.randn(40, 60)
    errors = [squared_error(encoded(BlockCirculant(block=10, residual=rank), weight), weight) for rank in (0, 2, 5)]
    assert errors == sorted(errors, reverse=True)
    left = (weight - encoded(BlockCirculant(block=10), weight).dense()).detach().double().numpy()
    assert errors[1] == pytest.approx(float((np.linalg.svd(left, compute_uv=False)[2:] ** 2).sum()), rel=1e-4)


def test_convolutions_are_matrices_with_their_kernel_in_the_columns() -> None:
    weight = torch.randn(16, 6, 3, 3)
    form = encoded(BlockCirculant(block=8), weight)
    assert_near(form.dense().flatten(1), encoded(BlockCirculant(block=8), weight.flatten(1)).dense(), 1e-6)


@pytest.mark.parametrize(
    ("outputs", "inputs", "block", "residual", "in_onnx_runtime"),
    [
        (600, 500, None, 3, nn.Linear),
        (530, 610, 64, 0, CosineCirculantLinear),
        (530, 610, 64, 2, CosineCirculantLinear),
        (700, 400, 300, 0, nn.Linear),
        (512, 512, 33, 0, CosineCirculantLinear),
        (4096, 100, None, 0, FourierCirculantLinear),
    ],
)
def test_fast_layers_equal_the_dense_layer(
    outputs: int, inputs: int, block: int | None, residual: int, in_onnx_runtime: type[nn.Module], tmp_path: Path
) -> None:
    eager, exported = lowered(BlockCirculant(block=block, residual=residual), outputs, inputs, tmp_path, bias=residual == 0)
    assert_is(CirculantLinear, eager)
    assert_is(in_onnx_runtime, exported)


@pytest.mark.parametrize(
    ("block", "outputs", "inputs", "compiled"),
    [(None, 512, 600, False), (None, 1024, 1000, True), (64, 512, 1000, True), (64, 2048, 400, False), (48, 600, 1000, False)],
)
def test_one_row_and_many_rows_go_other_ways_to_the_same_product(
    block: int | None, outputs: int, inputs: int, compiled: bool, tmp_path: Path
) -> None:
    layer, _ = lowered(BlockCirculant(block=block), outputs, inputs, tmp_path)
    assert isinstance(layer, CirculantLinear)
    assert layer.compiled == compiled
    x_NI = torch.randn(64, inputs)
    together = layer(x_NI)
    assert_near(torch.cat([layer(row[None]) for row in x_NI]), together, 1e-6)
    x_NI.requires_grad_()
    layer(x_NI[:2]).sum().backward()
    assert x_NI.grad is not None


def test_small_layers_stay_dense(tmp_path: Path) -> None:
    for layer in lowered(BlockCirculant(block=8), 40, 60, tmp_path):
        assert_is(nn.Linear, layer)


def test_damaged_headers_are_refused() -> None:
    form = encoded(BlockCirculant(block=4), torch.randn(12, 16))
    maps = [["circulant", {"block": b, "seed": s}] for b, s in ((0, 1), (-4, 1), (3, 1), (2**40, 1), (4, -1), (4.0, 1))]
    shapes = [[12, 20], [0, 16], [12], [1 << 20, 1 << 20], [-12, -16]]
    assert_refused(form, [{"map": map} for map in [*maps, ["circulants", {}], ["circulant", {}]]])
    assert_refused(form, [{"shape": shape} for shape in shapes])


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no fewer than the 144"):
        encoded(BlockCirculant(block=12, residual=6), torch.randn(12, 12))
    with pytest.raises(NotApplicable, match="rank 13 is above the full rank 12"):
        encoded(BlockCirculant(residual=13), torch.randn(12, 400))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(BlockCirculant(), torch.randn(12, 1, 3, 3))
    with pytest.raises(NotApplicable, match="is a vector"):
        encoded(BlockCirculant(), torch.randn(1, 30))
    with pytest.raises(DataError, match="NaN"):
        encoded(BlockCirculant(), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"block": 0}, {"block": 1}, {"block": -3}, {"residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="circulant: "):
        BlockCirculant(**settings)

"""Low displacement rank against explicit circulant matrices, Toeplitz matrices, a full rank, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.transform_layers import DisplacementLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Displacement
from kogata.forms.displacement import displacement
from kogata.methods.structured.low_displacement import LowDisplacement
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_refused, encoded, lowered, squared_error


def z(values: np.ndarray, f: float) -> np.ndarray:
    """``Σ_k v_k Z_f^k``, from powers of the shift."""
    size = len(values)
    shift = np.zeros((size, size))
    shift[np.arange(1, size), np.arange(size - 1)] = 1
    shift[0, -1] = f
    return sum((v * np.linalg.matrix_power(shift, k) for k, v in enumerate(values)), np.zeros((size, size)))


def generators(form: Displacement) -> tuple[np.ndarray, np.ndarray]:
    return form.g.dense().detach().double().numpy(), form.h.dense().detach().double().numpy()


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (14, 9)])
@pytest.mark.parametrize("rank", [1, 3])
def test_the_form_is_a_sum_of_explicit_products(shape: tuple[int, int], rank: int) -> None:
    form = encoded(LowDisplacement(rank=rank), torch.randn(shape))
    assert isinstance(form, Displacement)
    wanted = sum(z(g, 1) @ z(h, -1) for g, h in zip(*generators(form), strict=True))
    assert_near(form.dense(), torch.from_numpy(np.asarray(wanted)[: shape[0], : shape[1]].copy()), 1e-5)


def test_the_displacement_is_that_of_the_shifts() -> None:
    matrix = torch.randn(7, 7, dtype=torch.float64)
    one = np.eye(7)[1]
    assert_near(displacement(matrix), torch.from_numpy(z(one, 1) @ matrix.numpy() - matrix.numpy() @ z(one, -1)), 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_matrix_of_this_displacement_rank_is_recovered(rank: int) -> None:
    generator = np.random.default_rng(0)
    terms = [z(generator.standard_normal(20), 1) @ z(generator.standard_normal(20), -1) for _ in range(rank)]
    weight = torch.from_numpy(np.sum(terms, axis=0)).float()
    assert_near(encoded(LowDisplacement(rank=rank), weight).dense(), weight, 1e-4)


def test_a_toeplitz_matrix_has_displacement_rank_two() -> None:
    values = torch.randn(39)
    weight = torch.stack([values[19 - i : 39 - i] for i in range(20)])
    assert_near(encoded(LowDisplacement(rank=2), weight).dense(), weight, 1e-4)


def test_the_inverse_of_a_toeplitz_matrix_too() -> None:
    values = np.random.default_rng(0).standard_normal(39)
    matrix = np.stack([values[19 - i : 39 - i] for i in range(20)]) + 9 * np.eye(20)
    weight = torch.from_numpy(np.linalg.inv(matrix)).float()
    assert_near(encoded(LowDisplacement(rank=2), weight).dense(), weight, 1e-3)


def test_a_lower_rank_is_scaled_by_least_squares() -> None:
    weight = torch.randn(30, 40)
    form = encoded(LowDisplacement(rank=2), weight)
    found = form.dense().detach().double()
    assert float((found * (weight.double() - found)).sum()) == pytest.approx(0, abs=1e-3)
    assert squared_error(form, weight) < float(weight.double().square().sum())


def test_half_precision_is_computed_in_single() -> None:
    form = encoded(LowDisplacement(rank=2), torch.randn(30, 40))
    wanted = form.dense().detach()
    for dtype in (torch.bfloat16, torch.float16):
        found = form.to(dtype).dense()
        assert found.dtype is dtype
        assert_near(found, wanted, 2e-2)


@pytest.mark.parametrize(("outputs", "inputs", "rank", "residual"), [(600, 500, 1, 3), (700, 784, 2, 0)])
def test_fast_layers_equal_the_dense_layer(outputs: int, inputs: int, rank: int, residual: int, tmp_path: Path) -> None:
    eager, exported = lowered(LowDisplacement(rank=rank, residual=residual), outputs, inputs, tmp_path)
    assert_is(DisplacementLinear, eager)
    assert_is(torch.nn.Linear, exported)


def test_small_layers_stay_dense(tmp_path: Path) -> None:
    for layer in lowered(LowDisplacement(rank=4), 300, 400, tmp_path):
        assert_is(torch.nn.Linear, layer)


def test_damaged_headers_are_refused() -> None:
    form = encoded(LowDisplacement(rank=2), torch.randn(12, 16))
    assert_refused(form, [{"shape": s} for s in ([12, 20], [12, 15], [0, 16], [16], [1 << 20, 1 << 20], [-12, -16], None)])
    with pytest.raises(ValueError, match="generators"):
        Displacement.restore(form.header(), {}, {"g": form.parts()["g"], "h": encoded(LowDisplacement(rank=1), torch.eye(16))})


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="above the full displacement rank 12"):
        encoded(LowDisplacement(rank=13), torch.randn(12, 12))
    with pytest.raises(NotApplicable, match="no fewer than the 144"):
        encoded(LowDisplacement(rank=6), torch.randn(12, 12))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(LowDisplacement(rank=1), torch.randn(12, 1, 3, 3))
    with pytest.raises(DataError, match="NaN"):
        encoded(LowDisplacement(rank=1), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": -1}, {"rank": 1, "residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="low-displacement: "):
        LowDisplacement(**settings)

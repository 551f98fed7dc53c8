"""Fastfood against the product of its matrices, least squares of each diagonal, and dense layers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.transform_layers import FastfoodLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Fastfood
from kogata.forms.fastfood import permutations, sizes
from kogata.forms.hadamard import hadamard
from kogata.methods.structured.adaptive_fastfood import AdaptiveFastfood
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_refused, encoded, lowered, squared_error


def explicit(form: Fastfood) -> np.ndarray:
    """S H G Π H B of each stretch, every one of them as a matrix."""
    s, g, b = (part.dense().detach().double().numpy() for part in form.parts().values())
    size, inputs = s.shape[1], b.shape[1]
    h = np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / np.sqrt(size)
    pad = np.eye(size)[:, :inputs]
    rows: list[np.ndarray] = []
    for stretch in range(len(s)):
        swap = np.eye(size)[permutations(len(s), size, form.seed)[stretch].numpy()]
        rows.append(np.diag(s[stretch]) @ h @ np.diag(g[stretch]) @ swap @ h @ pad @ np.diag(b[stretch]))
    return np.concatenate(rows)[: form.shape[0]]


@pytest.mark.parametrize("shape", [(16, 16), (12, 13), (50, 13)])
def test_the_form_is_the_product_of_its_matrices(shape: tuple[int, int]) -> None:
    form = Fastfood.of([torch.randn(size) for size in sizes(shape)], 7, shape)
    assert_near(form.dense(), torch.from_numpy(explicit(form)), 1e-5)


def test_the_hadamard_matrix_is_orthonormal() -> None:
    assert_near(hadamard(64, torch.float64) @ hadamard(64, torch.float64).T, torch.eye(64, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("shape", [(32, 32), (70, 30)])
def test_rounds_only_lower_the_error(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    errors = [squared_error(encoded(AdaptiveFastfood(rounds=rounds), weight), weight) for rounds in (1, 2, 5, 20)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))
    assert errors[-1] < float(weight.square().sum())


def test_the_last_diagonal_is_the_least_squares_one() -> None:
    """Brute force: one column for each entry of g."""
    weight = torch.randn(16, 16)
    form = encoded(AdaptiveFastfood(rounds=3), weight)
    assert isinstance(form, Fastfood)
    s, g, b = (part.dense().detach() for part in form.parts().values())
    columns = [explicit(Fastfood.of([s, unit[None], b], form.seed, (16, 16))).ravel() for unit in torch.eye(16)]
    best = np.linalg.lstsq(np.stack(columns, 1), weight.double().numpy().ravel(), rcond=None)[0]
    assert_near(g[0], torch.from_numpy(best), 1e-3)


def test_permutations_are_permutations() -> None:
    orders = permutations(3, 64, 5)
    assert torch.equal(orders.sort(1).values, torch.arange(64).expand(3, -1))
    assert torch.equal(orders, permutations(3, 64, 5))
    assert not torch.equal(orders, permutations(3, 64, 6))


@pytest.mark.parametrize(("outputs", "inputs", "residual"), [(600, 500, 3), (512, 512, 0)])
def test_fast_layers_equal_the_dense_layer(outputs: int, inputs: int, residual: int, tmp_path: Path) -> None:
    eager, exported = lowered(AdaptiveFastfood(rounds=1, residual=residual), outputs, inputs, tmp_path)
    assert_is(FastfoodLinear, eager)
    assert_is(FastfoodLinear, exported)


def test_small_layers_stay_dense(tmp_path: Path) -> None:
    for layer in lowered(AdaptiveFastfood(), 40, 60, tmp_path):
        assert_is(torch.nn.Linear, layer)


def test_damaged_headers_are_refused() -> None:
    form = encoded(AdaptiveFastfood(), torch.randn(12, 16))
    shapes = ([12, 17], [30, 16], [0, 16], [16], [1 << 20, 1 << 20], [-12, -16])
    assert_refused(form, [*({"shape": s} for s in shapes), *({"seed": seed} for seed in (-1, 2**32, 1.5, "1", None))])
    parts = form.parts()
    with pytest.raises(ValueError, match="diagonals"):
        Fastfood.restore(form.header(), {}, parts | {"b": parts["s"], "s": encoded(AdaptiveFastfood(), torch.randn(9, 9))})


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no fewer than"):
        encoded(AdaptiveFastfood(), torch.randn(3, 40))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(AdaptiveFastfood(), torch.randn(12, 1, 3, 3))
    with pytest.raises(DataError, match="NaN"):
        encoded(AdaptiveFastfood(), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="fastfood: "):
        AdaptiveFastfood(**settings)

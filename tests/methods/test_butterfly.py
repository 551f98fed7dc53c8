"""Butterflies against products of sparse matrices, the Hadamard transform, exact recovery, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.structured_layers import ButterflyLinear, MonarchLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms.hadamard import hadamard
from kogata.methods.structured.butterfly import Butterfly
from kogata.methods.structured.monarch import Monarch
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_refused, encoded, lowered, squared_error


def sparse_product(factors: list[np.ndarray]) -> np.ndarray:
    """The factors as explicit sparse matrices: number s turns digit s of the index from an input into an output digit."""
    count = len(factors)
    rows = [factor.shape[s] for s, factor in enumerate(factors)]
    columns = [factor.shape[s + 1] for s, factor in enumerate(factors)]
    product = np.eye(int(np.prod(columns)))
    for s, factor in enumerate(factors):
        before, after = [*rows[:s], *columns[s:]], [*rows[: s + 1], *columns[s + 1 :]]
        matrix = np.zeros((int(np.prod(after)), int(np.prod(before))))
        for old in np.ndindex(*before):
            for digit in range(rows[s]):
                new = (*old[:s], digit, *old[s + 1 :])
                row, column = (np.ravel_multi_index(x[::-1], y[::-1]) for x, y in ((new, after), (old, before)))
                matrix[row, column] = factor[(*old[:s], digit, *old[s:])]
        product = matrix @ product
    assert count > 1
    return product


def random_factors(rows: list[int], columns: list[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal((*rows[: s + 1], *columns[s:])) for s in range(len(rows))]


@pytest.mark.parametrize(("shape", "count"), [((16, 16), 4), ((24, 36), 3), ((30, 16), 2)])
def test_the_form_is_the_product_of_sparse_matrices(shape: tuple[int, int], count: int) -> None:
    form = encoded(Butterfly(factors=count), torch.randn(shape))
    factors = [part.dense().detach().double().numpy() for part in form.parts().values()]
    assert_near(form.dense(), torch.from_numpy(sparse_product(factors)), 1e-5)


@pytest.mark.parametrize(
    ("rows", "columns"), [([2] * 5, [2] * 5), ([2, 3, 4], [3, 3, 4]), ([4, 6], [5, 6]), ([2, 2, 2, 3], [2, 2, 2, 2])]
)
def test_a_butterfly_matrix_is_recovered(rows: list[int], columns: list[int]) -> None:
    weight = torch.from_numpy(sparse_product(random_factors(rows, columns))).float()
    assert_near(encoded(Butterfly(factors=len(rows)), weight).dense(), weight, 1e-4)


def test_the_hadamard_matrix_is_a_butterfly() -> None:
    form = encoded(Butterfly(factors=6), hadamard(64, torch.float32))
    assert_near(form.dense(), hadamard(64, torch.float32), 1e-5)
    assert form.kept() == 6 * 2 * 64


def test_two_factors_are_the_nearest_monarch_matrix() -> None:
    weight = torch.randn(16, 36)
    assert squared_error(encoded(Butterfly(factors=2), weight), weight) == pytest.approx(
        squared_error(encoded(Monarch(), weight), weight), rel=1e-4
    )


@pytest.mark.parametrize(("outputs", "inputs", "count", "residual"), [(256, 512, 8, 0), (300, 784, 3, 3)])
def test_fast_layers_equal_the_dense_layer(outputs: int, inputs: int, count: int, residual: int, tmp_path: Path) -> None:
    eager, exported = lowered(Butterfly(factors=count, residual=residual), outputs, inputs, tmp_path)
    assert_is(MonarchLinear, eager)
    assert_is(ButterflyLinear, exported)


def test_damaged_headers_are_refused() -> None:
    form = encoded(Butterfly(factors=3), torch.randn(24, 36))
    equations = ["Aabc,ABbc,ABCc->CBAcb", "Aabc,ABbc->BAcba", "Aabc,ABbc,ABCb->CBAcba", None]
    shapes = [[24, 37], [0, 36], [-24, -36], [1 << 20, 1 << 20]]
    assert_refused(form, [*({"equation": e} for e in equations), *({"shape": shape} for shape in shapes)])


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no fewer than"):
        encoded(Butterfly(factors=2), torch.randn(7, 11))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(Butterfly(factors=2), torch.randn(12, 1, 3, 3))
    with pytest.raises(DataError, match="NaN"):
        encoded(Butterfly(factors=2), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"factors": 1}, {"factors": 27}, {"factors": 3, "residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="butterfly: "):
        Butterfly(**settings)

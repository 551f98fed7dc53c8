"""Kronecker sums against numpy's kron, the SVD of the rearranged matrix, and dense layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kogata.engines.lowering.structured_layers import KroneckerLinear
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.methods.structured.kronecker import Kronecker
from kogata.testing.comparisons import assert_near
from tests.methods.structured import assert_is, assert_projection, assert_refused, encoded, lowered, squared_error


@pytest.mark.parametrize("rank", [1, 3])
def test_the_form_is_a_sum_of_kronecker_products(rank: int) -> None:
    form = encoded(Kronecker(rank=rank), torch.randn(24, 36))
    left, right = (part.dense().detach().double().numpy() for part in form.parts().values())
    wanted = sum(np.kron(left[:, r], right[r]) for r in range(rank))
    assert_near(form.dense(), torch.from_numpy(np.asarray(wanted)), 1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_sum_of_kronecker_products_is_recovered(rank: int) -> None:
    generator = np.random.default_rng(0)
    terms = [np.kron(generator.standard_normal((4, 6)), generator.standard_normal((6, 6))) for _ in range(rank)]
    weight = torch.from_numpy(np.sum(terms, axis=0)).float()
    assert_near(encoded(Kronecker(rank=rank), weight).dense(), weight, 1e-5)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_error_is_the_tail_of_the_rearranged_matrix(rank: int) -> None:
    weight = torch.randn(24, 36)
    rows = [weight[6 * a : 6 * a + 6, 6 * c : 6 * c + 6].double().numpy().ravel() for a in range(4) for c in range(6)]
    tail = float((np.linalg.svd(np.stack(rows), compute_uv=False)[rank:] ** 2).sum())
    form = encoded(Kronecker(rank=rank), weight)
    assert squared_error(form, weight) == pytest.approx(tail, rel=1e-4)
    assert_projection(form, weight)


def test_rank_as_a_fraction() -> None:
    assert next(iter(encoded(Kronecker(rank=0.25), torch.randn(24, 36)).parts().values())).shape == (4, 6, 6)


@pytest.mark.parametrize(("outputs", "inputs", "rank", "residual"), [(300, 784, 2, 0), (256, 512, 1, 3)])
def test_fast_layers_equal_the_dense_layer(outputs: int, inputs: int, rank: int, residual: int, tmp_path: Path) -> None:
    eager, exported = lowered(Kronecker(rank=rank, residual=residual), outputs, inputs, tmp_path)
    assert_is(KroneckerLinear, eager)
    assert_is(KroneckerLinear, exported)


def test_a_high_rank_gains_no_time(tmp_path: Path) -> None:
    for layer in lowered(Kronecker(rank=20), 300, 784, tmp_path):
        assert_is(torch.nn.Linear, layer)


def test_damaged_headers_are_refused() -> None:
    form = encoded(Kronecker(rank=2), torch.randn(24, 36))
    equations = ["arc,rbd->abc", "arc,rbd,xy->abcd", "arc,abd->abcd", "...", 7, "arc->arc"]
    shapes = [[24, 37], [0, 36], [-24, -36], [1 << 20, 1 << 20]]
    assert_refused(form, [*({"equation": e} for e in equations), *({"shape": shape} for shape in shapes)])


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="is prime"):
        encoded(Kronecker(), torch.randn(97, 36))
    with pytest.raises(NotApplicable, match="above the full rank 24"):
        encoded(Kronecker(rank=25), torch.randn(24, 36))
    with pytest.raises(NotApplicable, match="no fewer than the 864"):
        encoded(Kronecker(rank=20), torch.randn(24, 36))
    with pytest.raises(NotApplicable, match="reads a single channel"):
        encoded(Kronecker(), torch.randn(12, 1, 3, 3))
    with pytest.raises(DataError, match="NaN"):
        encoded(Kronecker(), torch.full((12, 12), float("nan")))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": -1}, {"rank": 1.5}, {"residual": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="kronecker: "):
        Kronecker(**settings)

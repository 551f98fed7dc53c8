"""CP against sums of products that are known, a tensor that has no best approximation, and the loop over its terms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Kind, Site
from kogata.methods.lowrank.cp import CP, descended, fitted
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (16, 6, 3, 3), Kind.CONV, Role.MATRIX)


def encoded(weight: Tensor, rank: float) -> Form:
    return CP(rank=rank).encode(weight, SITE, Stats())


def summed(modes: list[Tensor]) -> Tensor:
    """Σ_r of the outer product of the r-th columns, term by term."""
    total = torch.zeros([len(mode) for mode in modes], dtype=modes[0].dtype)
    for r in range(modes[0].shape[1]):
        term = modes[0][:, r]
        for mode in modes[1:]:
            term = term[..., None] * mode[:, r]
        total += term
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "rank"), [((12, 10, 3, 3), 4), ((16, 8, 3, 5), 6), ((64, 32, 3, 3), 20), ((10, 8, 5), 3)])
def test_a_sum_of_products_is_recovered(shape: tuple[int, ...], rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = summed([torch.randn(size, rank) for size in shape])
    form = encoded(weight, rank)
    assert form.shape == weight.shape
    assert_near(form.dense(), weight, 1e-5)


def test_factors_multiply_to_the_sum_of_their_terms() -> None:
    form = encoded(torch.randn(12, 10, 3, 5), 7)
    left, across, down, right = (part.dense().detach() for part in form.parts().values())
    assert_near(form.dense(), summed([left, right.T, down.T, across.T]), 1e-5)


def test_the_error_never_rises_and_is_the_one_measured() -> None:
    weight = torch.randn(10, 8, 3, 3, dtype=torch.float64)
    modes, errors = [torch.randn(size, 6, dtype=torch.float64) for size in weight.shape], list[float]()
    for _ in range(15):
        modes, error = descended(weight, modes, 1)
        assert error == pytest.approx(float((summed(modes) - weight).square().sum()), rel=1e-9)
        errors.append(error)
    assert all(later <= before * (1 + 1e-6) for before, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_many_more_sweeps_gain_next_to_nothing() -> None:
    weight = torch.randn(16, 12, 3, 3, dtype=torch.float64)
    modes = fitted(weight / weight.norm(), 8)
    error, least = (descended(weight / weight.norm(), modes, sweeps)[1] for sweeps in (1, 30))
    assert error < 1.005 * least


def test_more_terms_leave_less_error() -> None:
    weight = torch.randn(16, 12, 3, 3)
    errors = [float((encoded(weight, rank).dense().detach() - weight).norm() / weight.norm()) for rank in (2, 8, 20, 40)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] < 1


def test_terms_that_would_cancel_without_end_stay_bounded() -> None:
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a has rank 3, but sums of 2 products come as close as one likes with ever larger terms."""
    a, b = torch.eye(6)[:2]
    places = torch.eye(3)
    weight = sum(torch.einsum("o,i,k->oik", *term) for term in ((a, a, places[1]), (a, b, places[0]), (b, a, places[0])))
    assert isinstance(weight, Tensor)
    form = encoded(weight, 2)
    assert float((form.dense().detach() - weight).norm() / weight.norm()) < 0.4
    assert max(float(part.dense().detach().abs().max()) for part in form.parts().values()) < 10


def test_the_same_weight_gives_the_same_factors_whatever_the_seed() -> None:
    weight = torch.randn(16, 12, 3, 3)
    torch.manual_seed(1)
    one = encoded(weight, 6).dense()
    torch.manual_seed(2)
    assert torch.equal(one, encoded(weight, 6).dense())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_does_not_matter(scale: float) -> None:
    weight = torch.randn(12, 10, 3, 3)
    assert_near(encoded(weight * scale, 5).dense() / scale, encoded(weight, 5).dense(), 1e-4)


def test_rank_as_a_fraction_of_the_size_over_its_longest_side() -> None:
    parts = encoded(torch.randn(16, 8, 3, 3), 0.125).parts().values()
    assert math.prod((16, 8, 3, 3)) // 16 == 72
    assert [tuple(part.shape) for part in parts] == [(16, 9), (9, 3), (9, 3), (9, 8)]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.ones(16, 8, 1, 1), "kernel of one position"),
        (torch.ones(16, 1, 3, 3), "reads a single channel"),
        (torch.ones(16, 8, 3, 3, 3), "1-d and 2-d convolutions"),
        (torch.ones(8, 8, 3, 3), "no fewer than the 576"),
        (torch.zeros(64, 64, 3, 3), "all its weights are zero"),
    ],
)
def test_refusals_say_why(weight: Tensor, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        encoded(weight, 30)


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match=r"layer\.weight of shape .* NaN"):
        encoded(torch.full((16, 6, 3, 3), float("nan")), 2)


@pytest.mark.parametrize("rank", [0, -2, 1.5, float("inf")])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="cp: rank"):
        CP(rank=rank)

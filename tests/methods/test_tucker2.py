"""Tucker-2 against tensors of known multilinear rank, the bounds that the unfoldings' spectra set, and the spared norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Kind, Site
from kogata.methods.lowrank import tucker2
from kogata.methods.lowrank.tucker2 import Tucker2
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (16, 6, 3, 3), Kind.CONV, Role.MATRIX)


def encoded(weight: Tensor, rank: float) -> Form:
    return Tucker2(rank=rank).encode(weight, SITE, Stats())


def of_rank(shape: tuple[int, ...], rank: int) -> Tensor:
    core = torch.randn(rank, rank, *shape[2:])
    return torch.einsum("os,sr...,ri->oi...", torch.randn(shape[0], rank), core, torch.randn(rank, shape[1]))


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (12, 20, 5), (10, 12, 3, 5)])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_tensor_of_low_rank_is_recovered(shape: tuple[int, ...], rank: int) -> None:
    weight = of_rank(shape, rank)
    form = encoded(weight, rank)
    assert form.shape == weight.shape
    assert_near(form.dense(), weight, 1e-5)
    for axes in ((0, 1), (1, 0)):
        unfolding = form.dense().detach().transpose(*axes).flatten(1).numpy()
        assert np.linalg.matrix_rank(unfolding, tol=1e-4) == rank


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_error_lies_between_the_tails_of_the_unfoldings(rank: int) -> None:
    """Either unfolding alone sets a bound that no Tucker form can beat; HOSVD is no worse than both together."""
    weight = torch.randn(16, 12, 3, 3)
    spectra = [np.linalg.svd(weight.transpose(0, n).flatten(1).double().numpy(), compute_uv=False) for n in range(2)]
    tails = [float((spectrum[rank:] ** 2).sum()) for spectrum in spectra]
    error = float((encoded(weight, rank).dense().detach() - weight).double().square().sum())
    assert max(tails) * (1 - 1e-6) <= error <= sum(tails) * (1 + 1e-6)


def test_the_error_is_the_norm_that_the_core_lacks() -> None:
    weight = torch.randn(16, 12, 3, 3)
    form = encoded(weight, 4)
    core = form.parts()["factors.1"].dense().detach()
    error = float((form.dense().detach() - weight).square().sum())
    assert error == pytest.approx(float(weight.square().sum() - core.square().sum()), rel=1e-4)


def test_iterations_gain_on_the_first_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, errors = torch.randn(16, 12, 3, 3), list[float]()
    for steps in (tucker2.STEPS, 0, 1, 3, 10):
        monkeypatch.setattr(tucker2, "STEPS", steps)
        errors.append(float((encoded(weight, 4).dense().detach() - weight).norm()))
    own, *errors = errors
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert own < errors[1], "the method itself takes several steps"


def test_rank_is_a_fraction_of_each_side_and_is_cut_to_it() -> None:
    parts = encoded(torch.randn(16, 8, 3, 3), 0.5).parts().values()
    assert [tuple(part.shape) for part in parts] == [(16, 8), (8, 4, 9), (4, 8)]
    parts = encoded(torch.randn(64, 3, 5, 5), 8).parts().values()
    assert [tuple(part.shape) for part in parts] == [(64, 8), (8, 3, 25), (3, 3)]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((16, 8, 1, 1), "kernel of one position"),
        ((16, 1, 3, 3), "reads a single channel"),
        ((16, 8, 3, 3, 3), "1-d and 2-d convolutions"),
        ((8, 8, 3, 3), "no fewer than the 576"),
    ],
)
def test_refusals_say_why(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        encoded(torch.randn(shape), 8)


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match=r"layer\.weight of shape .* infinite"):
        encoded(torch.full((16, 6, 3, 3), float("inf")), 2)


@pytest.mark.parametrize("rank", [0, -2, 1.5, float("inf")])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="tucker-2: rank"):
        Tucker2(rank=rank)

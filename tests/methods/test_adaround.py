"""AdaRound against every rounding of small rows, and against rounding to nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Affine, Role
from kogata.job import Kind, Site
from kogata.methods import AdaRound, RoundToNearest
from tests.methods.training import job_of, refused_settings

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def errors(change: Tensor, inputs: Tensor) -> Tensor:
    """‖Xδ‖² / rows for each row δ, from the inputs themselves."""
    return (inputs.double() @ change.detach().double().flatten(1).T).square().mean(0)


def correlated(columns: int) -> Tensor:
    return torch.randn(64, columns) @ torch.randn(columns, columns)


@pytest.mark.parametrize("bits", [2, 4])
def test_close_to_the_best_of_all_roundings(bits: int) -> None:
    weight, inputs = torch.randn(12, 10), correlated(10)
    stats = Stats(gram_GII=(inputs.T @ inputs / 64)[None])
    nearest, learnt = (method.encode(weight, SITE, stats) for method in (RoundToNearest(bits=bits), AdaRound(bits=bits)))
    assert isinstance(nearest, Affine)
    scale, zero = nearest.scale.dense().detach(), nearest.zero.float()
    best = torch.zeros(12, dtype=torch.float64)
    for row in range(12):
        down = (weight[row] / scale[row] + zero[row]).floor()
        codes = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=10))) + down).clamp(0, 2**bits - 1)
        best[row] = errors((codes - zero[row]) * scale[row] - weight[row], inputs).min()
    plain, found = (errors(form.dense() - weight, inputs) for form in (nearest, learnt))
    assert bool((found <= plain * (1 + 1e-6)).all())
    assert bool((found >= best * (1 - 1e-6)).all())
    gained = (plain - found).sum() / (plain - best).sum()
    assert float(gained) > 0.7  # of what the best rounding of each row gains


def test_codes_are_those_next_to_the_weight() -> None:
    weight, inputs = torch.randn(6, 4, 3, 3), correlated(36)
    form = AdaRound(bits=3, group=12).encode(weight, SITE, Stats(gram_GII=(inputs.T @ inputs)[None]))
    assert isinstance(form, Affine)
    step = form.scale.dense().detach().repeat_interleave(12, 1).reshape(weight.shape)
    inside = (form.code > 0) & (form.code < 7)
    assert float(((form.dense().detach() - weight).abs() / step)[inside].max()) < 1 + 1e-4


def test_uncorrelated_inputs_leave_rounding_to_nearest() -> None:
    weight = torch.randn(5, 8)
    stats = Stats(gram_GII=torch.eye(8)[None])
    assert torch.equal(
        AdaRound(bits=4).encode(weight, SITE, stats).dense(), RoundToNearest(bits=4).encode(weight, SITE, stats).dense()
    )


def test_groups_of_a_convolution_have_their_own_inputs() -> None:
    weight, inputs = torch.randn(4, 6), [correlated(6), correlated(6)]
    gram = torch.stack([x.T @ x / 64 for x in inputs])
    form = AdaRound(bits=3).encode(weight, SITE, Stats(gram_GII=gram)).dense().detach()
    for half in range(2):
        rows = slice(2 * half, 2 * half + 2)
        alone = AdaRound(bits=3).encode(weight[rows], SITE, Stats(gram_GII=gram[half : half + 1])).dense().detach()
        assert torch.equal(form[rows], alone)


def test_dead_inputs_zeros_and_single_rows() -> None:
    for weight, gram in ((torch.randn(1, 4), torch.zeros(1, 4, 4)), (torch.zeros(2, 4), torch.eye(4)[None])):
        dense = AdaRound(bits=4).encode(weight, SITE, Stats(gram_GII=gram)).dense()
        assert bool(torch.isfinite(dense).all())


def test_without_inputs_it_is_refused() -> None:
    with pytest.raises(NotApplicable, match="inputs could not be seen"):
        AdaRound(bits=4).encode(torch.randn(3, 3), SITE, Stats())


@pytest.mark.parametrize("settings", [{"bits": 0}, {"bits": 9}, {"bits": 4, "group": 0}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="adaround: "):
        refused_settings(AdaRound, **settings)


def test_as_a_step() -> None:
    torch.manual_seed(3)
    job = job_of(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)))
    inputs = torch.cat([batch[0] for batch in job.task.calibration])  # type: ignore[union-attr]
    outputs = [method.apply(job).model(inputs) for method in (RoundToNearest(bits=2), AdaRound(bits=2))]
    plain, learnt = (float((output - job.model(inputs)).detach().norm()) for output in outputs)
    assert learnt < plain

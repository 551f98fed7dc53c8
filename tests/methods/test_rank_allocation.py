"""The allocation against every combination of ranks of three small layers, and against its budget."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.costs import macs
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.job import Job, Kind, Site
from kogata.methods import SVD
from kogata.methods.base.allocation import allocated
from kogata.methods.base.compose import only
from kogata.methods.lowrank.rank_allocation import RankAllocation, losses, options
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.network.sites import form_at, selected_sites, sites_of

SITE = Site("layer", "weight", (10, 14), Kind.LINEAR, Role.MATRIX)


def spectra() -> list[Tensor]:
    """Squared singular values that fall at different speeds."""
    return [torch.logspace(0, -power, 8, dtype=torch.float64) for power in (1, 2, 4)]


def exhaustive(shapes: list[tuple[int, int]], budget: float) -> float:
    """The least sum of what is lost over all ranks, dense included, that cost no more than the budget."""
    least = np.inf
    choices: list[list[tuple[float, float]]] = []
    for (outputs, inputs), squares in zip(shapes, spectra(), strict=True):
        values = squares.numpy()
        found = [(r * (outputs + inputs), values[r:].sum()) for r in range(1, 8)]
        choices.append([*[pair for pair in found if pair[0] < outputs * inputs], (outputs * inputs, 0.0)])
    for chosen in product(*choices):
        if sum(cost for cost, _ in chosen) <= budget:
            least = min(least, sum(error for _, error in chosen))
    return float(least)


@pytest.mark.parametrize("steps", [3, 4, 7, 11, 16, 21, 24])
def test_greedy_is_exhaustive_search_where_steps_cost_the_same(steps: int) -> None:
    shapes = [(40, 40)] * 3
    layers = [options(torch.Size(shape), squares, 1.0) for shape, squares in zip(shapes, spectra(), strict=True)]
    found = allocated(layers, steps * 80 + 1)
    assert sum(option.error for option in found) == pytest.approx(exhaustive(shapes, steps * 80 + 1), rel=1e-9)
    assert sum(option.cost for option in found) <= steps * 80 + 1


@pytest.mark.parametrize("steps", range(12))
def test_nothing_that_costs_as_little_loses_less(steps: int) -> None:
    """Where the budget is just what so many of the best steps of unequal costs need, no combination beats them."""
    shapes = [(12, 12), (16, 8), (8, 30)]
    layers = [options(torch.Size(shape), squares, 1.0) for shape, squares in zip(shapes, spectra(), strict=True)]
    ranked = sorted((-a.gain(b), b.cost - a.cost) for layer in layers for a, b in pairwise(layer))
    budget = sum(layer[0].cost for layer in layers) + sum(cost for _, cost in ranked[:steps])
    found = allocated(layers, budget)
    assert sum(option.cost for option in found) == pytest.approx(budget)
    assert sum(option.error for option in found) == pytest.approx(exhaustive(shapes, budget), rel=1e-9)


def test_gains_fall_from_option_to_option() -> None:
    found = options(torch.Size((40, 30)), torch.rand(30, dtype=torch.float64).sort(descending=True).values, 2.0)
    slopes = [a.gain(b) for a, b in pairwise(found)]
    assert slopes == sorted(slopes, reverse=True)
    assert found[0].choice == 1
    assert (found[-1].choice, found[-1].cost, found[-1].error) == (None, 2400.0, 0.0)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_loss_of_a_rank_is_that_of_the_change_it_makes(rank: int) -> None:
    """By the Kronecker product of both second moments, written out."""
    weight, rows, gradients = torch.randn(10, 14), torch.randn(50, 14), torch.randn(50, 10)
    stats = Stats(gram_GII=(rows.T @ rows / 50)[None], gradient_OO=gradients.T @ gradients / 50)
    found = losses(weight, SITE, stats)[rank:].sum()
    basis = torch.linalg.svd(rows @ weight.T)[2][:rank]
    change = (weight - basis.T @ basis @ weight).flatten().double()
    hessian = np.kron(gradients.T @ gradients / 50, rows.T @ rows / 50)
    assert float(found) == pytest.approx(float(change.numpy() @ hessian @ change.numpy()), rel=1e-3)


def network() -> Job:
    """Three layers that differ in what they lose: the inputs of the first have few directions."""
    model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24))
    return prepare(model, Task(calibration=[torch.randn(200, 3) @ torch.randn(3, 40) + 0.05 * torch.randn(200, 40)]))


def kept(job: Job) -> list[int]:
    return [form_at(job.model, site).kept() for site in selected_sites(job)]


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_the_budget_holds_and_is_spent(fraction: float) -> None:
    job = network()
    after = RankAllocation(fraction=fraction).apply(job)
    whole = sum(kept(job))
    assert 0.85 * fraction * whole <= sum(kept(after)) <= fraction * whole


def test_multiplications_are_counted_once_for_each_place() -> None:
    model = nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=3), nn.Flatten(), nn.Linear(64, 40))
    images = torch.randn(20, 6, 10, 10).cumsum(3)
    job = prepare(model, Task(calibration=[images]))
    after = RankAllocation(fraction=0.4, cost="macs").apply(job)
    dense = macs(model, images)
    places = {name: count / model.get_parameter(name).numel() for name, count in dense.items()}
    spent = sum(form_at(after.model, site).kept() * places[site.name] for site in selected_sites(after))
    assert 0.8 * 0.4 * sum(dense.values()) <= spent <= 0.4 * sum(dense.values())


def test_one_budget_is_better_than_one_rank() -> None:
    job = network()
    shared = RankAllocation(fraction=0.5).apply(job)
    uniform = WhitenedSVD(rank=0.27).apply(job)
    assert sum(kept(shared)) <= sum(kept(uniform)) * 1.02
    rows = next(iter(job.task.calibration))  # type: ignore[call-overload]
    wanted = job.model(rows).detach()
    errors = [float((after.model(rows).detach() - wanted).norm()) for after in (shared, uniform)]
    assert errors[0] < 0.8 * errors[1]


def test_only_selected_layers_share_the_budget() -> None:
    job = network()
    after = only(RankAllocation(fraction=0.5), "0").apply(job)
    before, now = ([form_at(j.model, s).kept() for s in sites_of(j.model) if s.role == "matrix"] for j in (job, after))
    assert now[1:] == before[1:]
    assert now[0] <= 0.5 * before[0]


def test_factors_can_be_factored_again() -> None:
    job = SVD(rank=0.45).apply(network())
    with pytest.raises(NotApplicable, match="rank-allocation"):
        only(RankAllocation(fraction=0.001), "*").apply(job)


def test_layers_whose_inputs_cannot_be_seen_say_so() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(), nn.Linear(256, 64))
    job = prepare(model, Task(calibration=[torch.randn(30, 8, 6, 6)]))
    notes = {row.site: row.note for row in RankAllocation(fraction=0.5).apply(job).ledger}
    assert notes["2.weight"] == ""
    assert "grouped" in notes["0.weight"]


def test_a_budget_below_rank_one_is_refused() -> None:
    with pytest.raises(NotApplicable, match="rank 1 everywhere is too large, the cheapest options cost"):
        RankAllocation(fraction=0.01).apply(network())


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2.0, float("nan")])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(UsageError, match="rank-allocation: fraction"):
        RankAllocation(fraction=fraction)

"""The correction for a compressed prefix against least squares on the rows themselves, and reduced-rank regression by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Gathered, Stat, Stats
from kogata.errors import DataError, NotApplicable
from kogata.forms import Dense, Form, Role
from kogata.job import Job, Kind, Site
from kogata.methods.kernels.whitening import RIDGE, corrected
from kogata.methods.lowrank.rank_allocation import RankAllocation
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import selected_sites
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (20, 30), Kind.LINEAR, Role.MATRIX)
CROSS = frozenset({Stat.GRAM, Stat.CROSS})


def stats(before_NI: Tensor, now_NI: Tensor) -> Stats:
    """Of the rows a layer had and those it gets."""
    gram_II, cross_II = (rows_NI.T @ now_NI / len(now_NI) for rows_NI in (now_NI, before_NI))
    return Stats(gram_GII=gram_II[None], cross_GII=cross_II[None])


def drifted(rows: int, columns: int, directions: int) -> tuple[Tensor, Tensor]:
    """Rows before and after a change of the layers before; all lie in so many directions."""
    mixing = torch.linalg.qr(torch.randn(columns, directions)).Q.T
    before = torch.randn(rows, directions)
    return before @ mixing, (
        before + 0.1 * before @ torch.randn(directions, directions) + 0.3 * torch.randn_like(before)
    ) @ mixing


def least_squares(weight: Tensor, before_NI: Tensor, now_NI: Tensor) -> Tensor:
    """The best weight for the outputs before on the inputs now, by rows: more of these hold it to the weight it was."""
    now, outputs, columns = now_NI.double(), before_NI.double() @ weight.double().T, now_NI.shape[1]
    pull = (RIDGE * now.square().sum()).sqrt() * torch.eye(columns, dtype=torch.float64)
    rows, wanted = torch.cat([now, pull]), torch.cat([outputs, pull @ weight.double().T])
    return torch.linalg.lstsq(rows, wanted).solution.T


def regression(weight: Tensor, before_NI: Tensor, now_NI: Tensor, rank: int) -> Tensor:
    """The outputs of reduced-rank regression: those of least squares, projected on their leading singular vectors."""
    fitted = now_NI.double() @ least_squares(weight, before_NI, now_NI).T
    right = torch.linalg.svd(fitted, full_matrices=False).Vh[:rank]
    return fitted @ right.T @ right


@pytest.mark.parametrize(("directions", "shape"), [(30, (20, 30)), (30, (40, 30)), (12, (20, 30)), (12, (40, 30))])
@pytest.mark.parametrize("rank", [2, 8])
def test_it_is_reduced_rank_regression(directions: int, shape: tuple[int, int], rank: int) -> None:
    """Of the outputs before on the inputs now, singular ones included."""
    weight, (before, now) = torch.randn(shape), drifted(400, 30, directions)
    found = WhitenedSVD(rank=rank, correct=True).encode(weight, SITE, stats(before, now))
    assert_near(now.double() @ found.dense().detach().double().T, regression(weight, before, now, rank), 1e-4)


@pytest.mark.parametrize("directions", [12, 30])
def test_without_a_rank_it_is_least_squares(directions: int) -> None:
    weight, (before, now) = torch.randn(20, 30), drifted(400, 30, directions)
    assert_near(corrected(weight, SITE, stats(before, now)), least_squares(weight, before, now), 1e-5)


def test_directions_that_are_never_seen_keep_the_weight() -> None:
    weight = torch.randn(20, 30)
    before, now = torch.randn(100, 30), torch.randn(100, 30)
    before[:, 20:] = now[:, 20:] = 0
    found = corrected(weight, SITE, stats(before, now))
    assert_near(found[:, 20:], weight[:, 20:].double(), 1e-6)
    assert float((found - weight).norm()) > 0.5 * float(weight.norm())


def test_inputs_that_did_not_change_give_the_plain_method() -> None:
    weight, rows = torch.randn(20, 30), torch.randn(200, 30)
    assert_near(corrected(weight, SITE, stats(rows, rows)), weight.double(), 1e-6)
    plain, aimed = (WhitenedSVD(rank=5, correct=c).encode(weight, SITE, stats(rows, rows)) for c in (False, True))
    assert_near(aimed.dense(), plain.dense(), 1e-5)


def network() -> tuple[Job, Tensor]:
    """Three layers with a curve between them, the calibration data in two batches."""
    rows = torch.randn(400, 24) @ torch.randn(24, 24)
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 28), nn.Tanh(), nn.Linear(28, 20))
    return prepare(model, Task(calibration=list(rows.split(250)))), rows


def seen(model: nn.Module, rows: Tensor, layer: int) -> Tensor:
    with evaluating(model):
        for module in list(model.children())[:layer]:
            rows = module(rows)
    return rows


def test_each_layer_aims_at_the_original_outputs_from_what_it_gets() -> None:
    job, rows = network()
    after = WhitenedSVD(rank=4, correct=True).apply(job).model
    for layer in (0, 2, 4):
        old = job.model.get_parameter(f"{layer}.weight").detach()
        new = surgery.plain(after).get_parameter(f"{layer}.weight").detach()
        before, now = seen(job.model, rows, layer), seen(after, rows, layer)
        assert_near((now @ new.T).double(), regression(old, before, now, 4), 1e-3)


def test_outputs_are_nearer_with_one_rank_and_with_one_budget() -> None:
    job, rows = network()
    wanted = seen(job.model, rows, 5)
    for plain, aimed in (
        (WhitenedSVD(rank=6), WhitenedSVD(rank=6, correct=True)),
        (RankAllocation(fraction=0.5), RankAllocation(fraction=0.5, correct=True)),
    ):
        errors = [float((seen(method.apply(job).model, rows, 5) - wanted).norm()) for method in (plain, aimed)]
        assert errors[1] < 0.99 * errors[0]


def crosses(job: Job, changes: dict[str, Form]) -> dict[str, Gathered]:
    """What is gathered while weights become others."""
    model, found = surgery.clone(job.model), dict[str, Gathered]()
    for site, gathered in gather(job, dict.fromkeys(selected_sites(job), CROSS), model):
        found[site.name] = gathered
        if site.name in changes:
            surgery.replace(model, site, "", changes[site.name])
    return found


def test_the_statistic_is_of_both_runs_of_each_batch() -> None:
    job, rows = network()
    weight = torch.randn(32, 24)
    found = crosses(job, {"0.weight": Dense(weight, Role.MATRIX)})
    other = surgery.clone(job.model, share=False)
    other.get_parameter("0.weight").data.copy_(weight)
    for name, layer in (("0.weight", 0), ("2.weight", 2)):
        before, now = seen(job.model, rows, layer), seen(other, rows, layer)
        cross = found[name].cross_GII
        assert cross is not None
        assert_near(cross[0], before.T @ now / 400, 1e-5)


def test_convolutions_and_layers_that_are_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x += self.shared(x)  # in place: what the first call has seen is gone
            return self.shared(x)

    images = torch.randn(6, 3, 9, 9)
    job = prepare(Twice(), Task(calibration=list(images.split(4))))
    weight = torch.randn(4, 3, 3, 3)
    found = crosses(job, {"first.weight": Dense(weight, Role.MATRIX)})["shared.weight"].cross_GII
    shared = job.model.get_submodule("shared")
    inputs: list[list[Tensor]] = []
    with torch.no_grad():
        for first in (job.model.get_parameter("first.weight"), weight):
            x = nn.functional.conv2d(images, first, job.model.get_parameter("first.bias"), stride=2)
            parts = (nn.functional.unfold(y, 3, padding=1).unflatten(1, (2, -1)) for y in (x, x + shared(x)))
            inputs.append([part.permute(1, 0, 3, 2).flatten(1, 2) for part in parts])
    wanted = sum(before.mT @ now for before, now in zip(*inputs, strict=True))
    assert found is not None
    assert isinstance(wanted, Tensor)
    assert_near(found, wanted / sum(part.shape[1] for part in inputs[0]), 1e-5)


def test_a_batch_that_goes_another_way_is_told() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x[x[:, 0] > 0])

    job = prepare(Fork(), Task(calibration=[torch.randn(20, 4)]))
    with pytest.raises(DataError, match="another way"):
        crosses(job, {"first.weight": Dense(torch.randn(4, 4), Role.MATRIX)})


def test_statistics_of_one_net_are_not_enough() -> None:
    with pytest.raises(NotApplicable, match="original model"):
        WhitenedSVD(rank=2, correct=True).encode(torch.randn(20, 30), SITE, Stats(gram_GII=torch.eye(30)[None]))

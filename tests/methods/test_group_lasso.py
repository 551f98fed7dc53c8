"""Group lasso: the proximal step against its closed form and against a search, and that whole groups are pruned."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kogata
from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Masked
from kogata.methods import ChannelPruning, MagnitudePruning, Recover
from kogata.methods.base.compose import chain, only
from kogata.methods.pruning.group_lasso import GroupLasso, Groups, shrunk
from kogata.network.sites import form_at, form_of, selected_sites, sites_of
from kogata.testing.comparisons import weights

RECOVER = Recover(epochs=1)
ALL: tuple[Groups, ...] = ("filters", "channels", "shapes", "depth")


def members(shape: tuple[int, ...], groups: Groups) -> list[list[tuple[int, ...]]]:
    """The indices of each group, by the words of the paper."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in itertools.product(*(range(n) for n in shape)):
        key = {"filters": index[:1], "channels": index[1:2], "shapes": index[1:], "depth": ()}[groups]
        found.setdefault(key, []).append(index)
    return list(found.values())


@pytest.mark.parametrize("groups", ALL)
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2, 3)])
def test_proximal_step_is_the_soft_threshold_of_each_group(groups: Groups, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    weight[0] *= 0.2
    weight[:, 1] *= 0.2
    wanted, dead = torch.zeros_like(weight), 0
    for group in members(shape, groups):
        norm = math.sqrt(sum(float(weight[i]) ** 2 for i in group))
        factor = max(0.0, 1 - 0.5 * math.sqrt(len(group)) / norm)
        dead += factor == 0
        for i in group:
            wanted[i] = weight[i] * factor
    found = shrunk(weight, groups, 0.5)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-12
    assert dead == 0 if groups == "depth" else dead > 0


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_it_is_the_minimum_of_the_proximal_problem(scale: float) -> None:
    """No nearby point has a lower ½‖V − W‖² + a Σ √|g| ‖V_g‖."""
    torch.manual_seed(0)
    weight = scale * torch.randn(3, 4, dtype=torch.float64)

    def objective(point: Tensor) -> float:
        return float((point - weight).square().sum() / 2 + 0.3 * math.sqrt(4) * point.norm(dim=1).sum())

    weight[0] *= 3 / scale  # one group survives in any case
    found = shrunk(weight, "filters", 0.3)
    for size in (1e-1, 1e-3, 1e-5):
        for _ in range(100):
            assert objective(found + size * torch.randn_like(found)) >= objective(found)


def test_the_largest_group_survives() -> None:
    weight = torch.tensor([[0.1, 0.1], [0.2, -0.1], [0.0, 0.0]])
    assert torch.equal(shrunk(weight, "filters", 10.0), torch.tensor([[0, 0], [0.2, -0.1], [0, 0]]))
    assert not shrunk(weight, "depth", 10.0).any()


def test_zero_stays_zero() -> None:
    assert torch.equal(shrunk(torch.zeros(3, 2), "filters", 0.1), torch.zeros(3, 2))


def test_over_a_whole_training_a_group_loses_the_strength() -> None:
    """Whatever the number of steps: 1.0 less 0.3 in the root mean square, and the group of 0.2 is gone."""
    for steps in (1, 7):
        layer = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, -1, 1, -1], [0.2, 0.2, 0.2, 0.2]]))
        net = GroupLasso(strength=0.3, recover=RECOVER).begin(layer)
        for i in range(steps):
            net.step(progress=(i + 1) / steps)
        form = form_at(net.finish(), sites_of(layer)[0])
        assert isinstance(form, Masked)
        assert form.mask.tolist() == [[True] * 4, [False] * 4]
        assert form.dense()[0].tolist() == pytest.approx([0.7, -0.7, 0.7, -0.7], rel=1e-5)


def regression(groups: Groups) -> tuple[nn.Module, Task]:
    """A convolution, of which every third filter and channel adds nothing to the target."""
    torch.manual_seed(0)
    true, layer = nn.Conv2d(6, 6, 3, bias=False), nn.Conv2d(6, 6, 3, bias=False)
    with torch.no_grad():
        if groups == "filters":
            true.weight[::3] = 0
        if groups == "channels":
            true.weight[:, ::3] = 0
        if groups == "shapes":
            true.weight[:, :, 0] = 0
        true.weight *= 5
        layer.weight.copy_(true.weight + 0.03 * torch.randn_like(true.weight))
        inputs = torch.randn(64, 6, 6, 6)
        batches = list(zip(inputs.split(8), true(inputs).split(8), strict=True))
    return layer, Task(calibration=[inputs], train=batches, loss=lambda output, target: (output - target).square().mean())


@pytest.mark.parametrize("groups", ["filters", "channels", "shapes"])
def test_idle_groups_are_found(groups: Groups) -> None:
    layer, task = regression(groups)
    method = GroupLasso(strength=0.2, groups=groups, recover=Recover(epochs=10, learning_rate=3e-3, distill=0.0))
    found = method.apply(prepare(layer, task))
    (row,) = found.ledger
    assert row.bits_after < row.bits_before
    form = form_at(found.model, selected_sites(found)[0])
    assert isinstance(form, Masked)
    pruned = ~form.mask
    idle = {"filters": pruned[::3], "channels": pruned[:, ::3], "shapes": pruned[:, :, 0]}[groups]
    assert bool(idle.all())
    assert int(pruned.sum()) == idle.numel()


def test_weights_of_a_mask_have_no_groups() -> None:
    layer, task = regression("filters")
    pruned = MagnitudePruning(sparsity=0.5).apply(prepare(layer, task))
    with pytest.raises(NotApplicable, match="left values"):
        GroupLasso(strength=0.1, recover=RECOVER).apply(pruned)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        GroupLasso(strength=strength, recover=RECOVER)


def small() -> tuple[nn.Sequential, Task]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 16, 4),
    )  # fmt: skip
    inputs = torch.randn(64, 3, 6, 6)
    batches = [(x, x.mean((1, 2, 3)).mul(20).long().clamp(0, 3)) for x in inputs.split(16)]
    return net, Task(calibration=batches, train=batches, loss=nn.functional.cross_entropy)


@pytest.mark.parametrize("groups", ["filters", "channels"])
def test_dead_filters_and_channels_leave_the_layers(groups: Groups, tmp_path: Path) -> None:
    net, task = small()
    where = "0" if groups == "filters" else "3"
    strength = 0.16 if groups == "filters" else 0.08
    lasso = only(GroupLasso(strength=strength, groups=groups, recover=Recover(epochs=3, learning_rate=1e-2)), where)
    job = lasso.apply(prepare(net, task))
    shrunken = weights(job.model)[f"{where}.weight"]
    alive = int(shrunken.flatten(2).any(2).any(1 if groups == "filters" else 0).sum())
    assert 1 <= alive < 16
    result = kogata.compress(net, task, chain(lasso, ChannelPruning(sparsity=0.0)), engine=None, output=tmp_path / "run")
    first, last = result.model.get_submodule("0"), result.model.get_submodule("3")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert (first.out_channels, last.in_channels, last.out_channels) == (alive, alive, 24)
    assert form_of(first, "weight") is form_of(last, "weight") is None


def test_channels_that_nothing_reads_go_without_a_trace() -> None:
    net, task = small()
    with torch.no_grad():
        net.get_parameter("3.weight")[:, ::2] = 0
    job = prepare(net.eval(), task)
    made = ChannelPruning(sparsity=0.0).apply(job).model.eval()
    assert made.get_parameter("0.weight").shape == (8, 3, 3, 3)
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        assert float((made(x) - net(x)).norm() / net(x).norm()) < 1e-5


def test_dead_filters_that_must_stay_are_masked_again() -> None:
    net, task = small()
    job = only(GroupLasso(strength=0.12, recover=RECOVER), "[03]").apply(prepare(net, task))
    after = only(ChannelPruning(sparsity=0.0), "0").apply(job)
    form, before = form_of(after.model.get_submodule("3"), "weight"), form_of(job.model.get_submodule("3"), "weight")
    assert isinstance(form, Masked)
    assert isinstance(before, Masked)
    left = after.model.get_parameter("0.weight").shape[0]
    assert form.shape == (24, left, 3, 3)
    assert torch.equal(form.mask.flatten(1).any(1), before.mask.flatten(1).any(1))

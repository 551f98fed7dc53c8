"""Running statistics of batch normalization follow what a step changes, by the difference that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.calibration import normalization
from kogata.calibration.normalization import ENOUGH, Moments, move, renewed
from kogata.calibration.prepare import prepare
from kogata.flow import compress
from kogata.job import Job, Task, Where
from kogata.methods import (
    BRECQ,
    GPTQ,
    ADMMPruning,
    ChannelPruning,
    DynamicActivations,
    Half,
    KMeans,
    MagnitudePruning,
    Recover,
    RoundToNearest,
    Wanda,
)
from kogata.methods.base import trained
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.nn.filters import GroupBatchNorm2d

STATISTICS = ("running_mean", "running_var")


def small_net() -> nn.Sequential:
    """Two normalized layers, with statistics that are not those of any data in these tests."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 5),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.3, 0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return net.eval()


def job_on(net: nn.Module, *batches: Tensor) -> Job:
    return prepare(net, Task(calibration=list(batches)))


def statistics(net: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    layer = net.get_submodule(name)
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")


def pairs(old: nn.Module, new: nn.Module, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Each statistic of a layer in two models."""
    return zip(statistics(old, name), statistics(new, name), strict=True)


def linear_job(scale: float, inputs: Tensor) -> tuple[Job, Job]:
    """A linear layer and a normalization before and after the weight and the bias are scaled."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    nn.init.uniform_(net[1].get_buffer("running_mean"), -0.3, 0.3)
    nn.init.uniform_(net[1].get_buffer("running_var"), 0.5, 2.0)
    before = job_on(net, *inputs.split(300))
    model = surgery.clone(before.model, share=False)
    with torch.no_grad():
        for parameter in model.get_submodule("0").parameters():
            parameter.mul_(scale)
    return before, renewed(before, replace(before, model=model))


def test_unchanged_net_keeps_every_bit_and_shares_its_buffers() -> None:
    before = job_on(small_net(), torch.randn(16, 3, 6, 6))
    after = renewed(before, replace(before, model=surgery.clone(before.model)))
    assert after.renewed == ()
    for name in ("1", "4"):
        for old, new in pairs(before.model, after.model, name):
            assert new is old


def test_statistics_follow_a_scaled_layer() -> None:
    """Outputs scaled by 2: their variance is 4 times that of before, their mean is larger by that of the data."""
    inputs = torch.randn(1000, 6) + 1
    before, after = linear_job(2.0, inputs)
    (mean, variance), (new_mean, new_variance) = statistics(before.model, "1"), statistics(after.model, "1")
    known = 1000 / (1000 + normalization.PRIOR)
    with torch.no_grad():
        reached = before.model.get_submodule("0")(inputs)
    torch.testing.assert_close(new_mean, mean + known * reached.mean(0))
    found = reached.var(0, correction=0)
    ratio = (known * 4 * found + (1 - known) * variance) / (known * found + (1 - known) * variance)
    torch.testing.assert_close(new_variance, variance * ratio)
    torch.testing.assert_close(new_variance, 4 * variance, rtol=0.03, atol=0)
    assert after.renewed == ("1",)


def test_only_what_lies_behind_a_change_moves() -> None:
    before = job_on(small_net(), torch.randn(16, 3, 6, 6))
    after = only(RoundToNearest(bits=2), "3").apply(before)
    assert after.renewed == ("4",)
    for old, new in zip(statistics(before.model, "1"), statistics(after.model, "1"), strict=True):
        assert new is old
    last = only(GPTQ(bits=2), "7").apply(before)
    assert last.renewed == ()
    assert all(new is old for name in ("1", "4") for old, new in pairs(before.model, last.model, name))


def test_models_without_running_statistics_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4))
    job = job_on(net, torch.randn(8, 64))
    monkeypatch.setattr(normalization, "calibration_batches", lambda model, task: pytest.fail("the data was read"))
    assert KMeans(clusters=2).apply(job).renewed == ()


def test_one_sample_changes_a_constant_channel_by_no_more_than_the_prior_allows() -> None:
    """One sample has no variance: the ratio is 1, and the mean moves by half of what it shows."""
    before, after = linear_job(3.0, torch.randn(1, 6))
    (mean, variance), (new_mean, new_variance) = statistics(before.model, "1"), statistics(after.model, "1")
    torch.testing.assert_close(new_variance, variance)
    with torch.no_grad():
        reached = before.model.get_submodule("0")(before.task.calibration[0])[0]  # type: ignore[index]
    torch.testing.assert_close(new_mean, mean + reached)  # half of the difference, which is twice the old value


def test_few_samples_do_little_harm() -> None:
    """8 bits change little, so that statistics from two samples stay close; those of the samples themselves do not."""
    before = job_on(small_net(), torch.randn(2, 3, 6, 6))
    after = GPTQ(bits=8).apply(before).model
    for name in ("1", "4"):
        for old, new in pairs(before.model, after, name):
            assert float((new - old).norm() / old.norm()) < 0.02


def test_a_channel_that_was_constant_stays_finite() -> None:
    """A dead channel that comes to life has no ratio of variances; a zero of training neither."""
    layer = nn.BatchNorm1d(2)
    layer.get_buffer("running_var")[1] = 0
    dead, alive = Moments(), Moments()
    dead(layer, (torch.zeros(50, 2),), {})
    alive(layer, (torch.randn(50, 2),), {})
    assert move(layer, dead, alive)
    for name in STATISTICS:
        assert bool(layer.get_buffer(name).isfinite().all())
    assert float(layer.get_buffer("running_var")[0]) > 1


def test_values_that_overflow_leave_the_statistics() -> None:
    layer = nn.BatchNorm1d(2)
    were, now = Moments(), Moments()
    were(layer, (torch.ones(9, 2),), {})
    now(layer, (torch.tensor([[float("inf"), 2.0]]).repeat(9, 1),), {})
    assert move(layer, were, now)
    torch.testing.assert_close(layer.get_buffer("running_mean"), torch.tensor([0.0, 9 / (9 + normalization.PRIOR)]))


@pytest.mark.parametrize(
    "method",
    [
        MagnitudePruning(sparsity=0.5),
        KMeans(clusters=3),
        RoundToNearest(bits=2),
        Wanda(sparsity=0.5),
        GPTQ(bits=2),
        DynamicActivations(bits=2),
        BRECQ(bits=2, blocks=("0", "3"), iterations=2),
        MagnitudePruning(sparsity=0.5, rounds=2),
    ],
    ids=lambda method: method.title(),
)
def test_every_kind_of_method_renews(method: Method) -> None:
    """The oracle moves the statistics from the definition, with the inputs of a layer all in memory."""
    images = torch.randn(40, 3, 6, 6) + 0.5
    before = job_on(small_net(), images[:25], images[25:])
    after = method.apply(before)
    assert after.renewed == ("1", "4")
    if not isinstance(method, MagnitudePruning) or method.rounds == 1:
        for name in ("1", "4"):
            wanted = by_definition(before.model, after.model, name, images)
            for found, expected in zip(statistics(after.model, name), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, tensor in job_on(small_net(), images).model.named_buffers():
        assert torch.equal(before.model.get_buffer(name), tensor), "the given job has changed"


def by_definition(old: nn.Module, new: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    def reached(net: nn.Module) -> Tensor:
        caught = list[Tensor]()
        handle = net.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0].double()))
        with torch.no_grad():
            for batch in images.split(25):
                net(batch)
        handle.remove()
        return torch.cat(caught)

    mean, variance = (tensor.double() for tensor in statistics(old, name))
    was, now, known = reached(old), reached(new), len(images) / (len(images) + normalization.PRIOR)
    axes = (0, 2, 3)
    above = known * now.var(axes, correction=0) + (1 - known) * variance
    below = known * was.var(axes, correction=0) + (1 - known) * variance
    return (mean + known * (now.mean(axes) - was.mean(axes))).float(), (variance * above / below).float()


def test_pruned_channels_are_compared_with_what_they_were() -> None:
    images = torch.randn(30, 3, 6, 6) + 0.5
    before = job_on(small_net(), images)
    after = ChannelPruning(sparsity=0.5).apply(before)
    assert "4" in after.renewed
    assert "1" not in after.renewed, "the channels that are left get what they got before"
    (mean, _), (old_mean, _) = statistics(after.model, "1"), statistics(before.model, "1")
    assert len(mean) < len(old_mean)
    assert set(mean.tolist()) <= set(old_mean.tolist())


def test_half_precision_buffers_are_rounded_after_they_moved() -> None:
    after = only(Half(), Where(vectors=True)).apply(job_on(small_net(), torch.randn(8, 3, 6, 6)))
    for name in ("1", "4"):
        for tensor in statistics(after.model, name):
            assert torch.equal(tensor, tensor.half().float())


def test_maps_that_share_statistics_in_groups() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), GroupBatchNorm2d(2, 4)).eval()
    images = torch.randn(20, 3, 6, 6) + 1
    before = job_on(net, images)
    after = RoundToNearest(bits=2).apply(before)
    with torch.no_grad():
        was, now = (job.model.get_submodule("0")(images).unflatten(1, (2, 4)) for job in (before, after))
    wanted = 20 / (20 + normalization.PRIOR) * (now.mean((0, 2, 3, 4)) - was.mean((0, 2, 3, 4)))
    torch.testing.assert_close(statistics(after.model, "1")[0], wanted, rtol=1e-4, atol=1e-6)


def test_data_beyond_what_is_enough_is_not_kept() -> None:
    job = job_on(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), *torch.randn(40, 100, 2))
    inputs = normalization._inputs(job)  # pyright: ignore[reportPrivateUsage]
    assert ENOUGH <= sum(map(len, inputs)) < ENOUGH + 100


def test_a_model_that_changes_its_inputs_in_place_is_the_same_twice() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    inputs = torch.randn(20, 4)
    before = job_on(net, inputs)
    assert renewed(before, replace(before, model=surgery.clone(before.model))).renewed == ()


class Digits:
    """Separable images of four classes, and a depthwise-separable net trained on them in a second."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        patterns = torch.rand(4, 1, 8, 8)
        self.labels = torch.arange(600) % 4
        self.images = patterns[self.labels] + 0.3 * torch.randn(600, 1, 8, 8)
        widths = (1, 16, 32, 32)
        parts = list[nn.Module]()
        for before, width in pairwise(widths):
            parts += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
        optimizer = torch.optim.Adam(self.net.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.randperm(400).split(50):
                optimizer.zero_grad()
                functional.cross_entropy(self.net(self.images[rows]), self.labels[rows]).backward()
                optimizer.step()
        self.net.eval()

    def accuracy(self, net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(self.images[400:]).argmax(1) == self.labels[400:]).float().mean())


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def with_statistics_of(net: nn.Module, other: nn.Module) -> nn.Module:
    twin = surgery.plain(net)
    for name, buffer in other.named_buffers():
        twin.get_buffer(name).copy_(buffer)
    return twin


@pytest.mark.parametrize(
    "method", [MagnitudePruning(sparsity=0.6), KMeans(clusters=4), RoundToNearest(bits=2)], ids=lambda method: method.title()
)
def test_a_trained_net_keeps_its_accuracy(digits: Digits, method: Method) -> None:
    """What each method lost because the statistics stayed behind comes back."""
    after = method.apply(job_on(digits.net, *digits.images[:400].split(100))).model
    behind = digits.accuracy(with_statistics_of(after, digits.net))
    assert digits.accuracy(after) > max(0.95, behind + 0.1)


def test_training_renews_by_itself_and_the_report_says_what_moved() -> None:
    images, labels = torch.randn(12, 3, 6, 6), torch.randint(5, (12,))
    task = Task(calibration=[images], train=[(images, labels)], loss=functional.cross_entropy)
    method = chain(RoundToNearest(bits=4), Recover(epochs=1))
    result = compress(small_net(), task, method, engine=None)
    assert [step.renewed for step in result.report.steps] == [("1", "4"), ()]
    told = [note for note in result.report.notes if "running statistics" in note]
    assert len(told) == 1
    assert told[0].startswith("step 1 (round-to-nearest): the running statistics of 2 batch normalization layers moved by")


def test_what_is_done_after_training_moves_trained_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """ADMM projects its weights when it has trained; statistics follow from those of the training."""
    images, labels = torch.randn(40, 3, 6, 6), torch.randint(5, (40,))
    task = Task(calibration=[images], train=[(images, labels)], loss=functional.cross_entropy)
    given = list[tuple[Job, Job]]()

    def watched(before: Job, after: Job) -> Job:
        given.append((before, after))
        return renewed(before, after)

    monkeypatch.setattr(trained, "renewed", watched)
    after = ADMMPruning(sparsity=0.6, recover=Recover(epochs=3)).apply(prepare(small_net(), task))
    assert after.renewed == ("1", "4")
    ((before, _),) = given
    for name in ("1", "4"):
        wanted = by_definition(before.model, after.model, name, images)
        for found, expected, start in zip(
            statistics(after.model, name), wanted, statistics(small_net(), name), strict=True
        ):  # fmt: skip
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, start, rtol=0.05)


def test_statistics_of_half_precision_stay_such() -> None:
    """Otherwise a file whose vectors were rounded would grow again; whole numbers, as a fresh layer has, say nothing of it."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    norm = model.get_submodule("1")
    job = prepare(model, Task(calibration=[3 * torch.randn(500, 6) + 1]))
    fresh = RoundToNearest(bits=2).apply(job).model.get_submodule("1").get_buffer("running_mean")
    assert not torch.equal(fresh.half().float(), fresh)
    for name in ("running_mean", "running_var"):
        norm.get_buffer(name).uniform_(0.5, 2)
        norm.get_buffer(name).copy_(norm.get_buffer(name).half())
    job = prepare(model, Task(calibration=[3 * torch.randn(500, 6) + 1]))
    moved = RoundToNearest(bits=2).apply(job).model.get_submodule("1")
    for name in ("running_mean", "running_var"):
        assert torch.equal(moved.get_buffer(name).half().float(), moved.get_buffer(name))
        assert not torch.equal(moved.get_buffer(name), norm.get_buffer(name))

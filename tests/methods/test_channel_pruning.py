"""Channel pruning: which channels go, by definition; what is left, by zeroing; the repair, by least squares on the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kogata
from kogata import Task
from kogata.calibration.normalization import renewed
from kogata.calibration.prepare import prepare
from kogata.calibration.probe import Probe
from kogata.engines import ONNXRUNTIME, onnx_graph
from kogata.engines.lowering.lower import lower
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.job import Job
from kogata.methods import SVD, Half, KMeans, MagnitudePruning, Recover, RoundToNearest
from kogata.methods.base.compose import chain, only
from kogata.methods.base.order import check_order
from kogata.methods.pruning.channel_pruning import ChannelPruning
from kogata.network import surgery
from kogata.network.batch import call, evaluating
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_equal, assert_near, batch_of, output, through_file, weights
from kogata.testing.models import ConvNet, job_of
from tests.core.architectures import ARCHITECTURES, built

Score = Literal["norm", "taylor", "fisher"]


class Mlp(nn.Module):
    """Two hidden layers; the groups are ``one`` and ``two``."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.two(torch.relu(self.one(x)))))


def mlp_job() -> Job:
    batches = [(torch.randn(20, 6), torch.randint(0, 4, (20,))) for _ in range(2)]
    return prepare(Mlp(), Task(calibration=batches, train=batches, loss=functional.cross_entropy))


def kept(before: nn.Module, after: nn.Module, layer: str) -> list[int]:
    """Which rows of a layer are still there, found by their biases."""
    old, new = (model.get_parameter(f"{layer}.bias").tolist() for model in (before, after))
    return [old.index(value) for value in new]


def lowest(scores: np.ndarray, count: int) -> list[int]:
    return sorted(np.argsort(-scores, kind="stable")[: len(scores) - count].tolist())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_equals_the_dense_model_with_these_channels_zeroed(name: str, scope: Literal["layer", "global"]) -> None:
    """A channel is zero when every parameter that makes, normalizes or shifts it is."""
    model, inputs = built(name)
    job = prepare(model, Task(calibration=[inputs]))
    after = ChannelPruning(sparsity=0.5, repair=False, scope=scope).apply(job).model
    zeroed = surgery.clone(model, share=False)
    old, new = weights(model), weights(after)
    assert any(old[key].shape != new[key].shape for key in old)
    for key, tensor in old.items():
        stays = torch.ones(())
        for axis in range(min(2, tensor.ndim)):
            size, matches = tensor.shape[axis], matching(tensor, new[key], axis)
            view = [1] * tensor.ndim
            view[axis] = size
            stays = stays * matches.reshape(view)
        path, _, parameter = key.rpartition(".")
        with torch.no_grad():
            getattr(zeroed.get_submodule(path), parameter).mul_(stays)
    zeroed = renewed(job, replace(job, model=zeroed)).model  # running statistics follow here as there
    with evaluating(after), evaluating(zeroed):
        assert_near(call(after, inputs), call(zeroed, inputs), 1e-5)


def matching(old: Tensor, new: Tensor, axis: int) -> Tensor:
    """Which slices along an axis are still there: those whose numbers all the remaining ones are found in, in order."""
    if old.shape[axis] == new.shape[axis]:
        return torch.ones(old.shape[axis])
    places, position = torch.zeros(old.shape[axis]), 0
    for i in range(old.shape[axis]):
        if position < new.shape[axis] and torch.isin(new.select(axis, position), old.select(axis, i)).all():
            places[i], position = 1, position + 1
    assert position == new.shape[axis]
    return places


def test_norm_by_loops() -> None:
    job = mlp_job()
    after = ChannelPruning(sparsity=0.5, repair=False).apply(job).model
    model = job.model
    for maker, reader, width in (("one", "two", 8), ("two", "out", 10)):
        w, v = (model.get_parameter(f"{layer}.weight").detach().numpy().astype(float) for layer in (maker, reader))
        scores = np.array([sum(x**2 for x in w[c]) + sum(x**2 for x in v[:, c]) for c in range(width)]) ** 0.5
        assert kept(model, after, maker) == lowest(scores, width // 2)


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_sensitivities_by_finite_differences(score: Score) -> None:
    """Of the loss of single samples with the channel's activation scaled, in float64."""
    job = mlp_job()
    after = ChannelPruning(sparsity=0.5, score=score, repair=False).apply(job).model
    model = surgery.clone(job.model, share=False).double()
    for layer, width in (("one", 8), ("two", 10)):
        scores = np.zeros(width)
        for c in range(width):
            losses = [losses_with(job, model, layer, c, factor) for factor in (1 + 1e-5, 1 - 1e-5)]
            slopes = (losses[0] - losses[1]) / 2e-5
            scores[c] = float((slopes.abs() if score == "taylor" else slopes.square()).sum())
        assert kept(job.model, after, layer) == lowest(scores, width // 2)


def losses_with(job: Job, model: nn.Module, layer: str, channel: int, factor: float) -> Tensor:
    """The loss of each calibration sample when what follows ``layer`` sees one of its activations scaled."""
    reader = {"one": "two", "two": "out"}[layer]
    scale = torch.ones(model.get_parameter(f"{reader}.weight").shape[1], dtype=torch.float64)
    scale[channel] = factor
    handle = model.get_submodule(reader).register_forward_pre_hook(lambda _, args: (args[0] * scale,))
    batches: Any = job.task.calibration
    with torch.no_grad():
        found = [functional.cross_entropy(model(x.double()), y, reduction="none") for x, y in batches]
    handle.remove()
    return torch.cat(found)


def test_global_scope_ranks_the_channels_of_all_layers() -> None:
    """By the norm relative to the layer's mean."""
    job = mlp_job()
    ranked: list[tuple[float, str, int]] = []
    for layer, reader in (("one", "two"), ("two", "out")):
        w, v = (job.model.get_parameter(f"{name}.weight").detach().double() for name in (layer, reader))
        norms = (w.square().sum(1) + v.square().sum(0)).sqrt()
        ranked += [(score, layer, c) for c, score in enumerate((norms / norms.mean()).tolist())]
    after = ChannelPruning(sparsity=0.5, scope="global", repair=False).apply(job).model
    stays = sorted(ranked)[9:]
    for layer in ("one", "two"):
        assert kept(job.model, after, layer) == sorted(c for _, name, c in stays if name == layer)


def test_nothing_to_remove() -> None:
    with pytest.raises(NotApplicable, match="none of its channels is chosen for removal"):
        ChannelPruning(sparsity=0.0).apply(mlp_job())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_channel_stays_in_every_group(scope: Literal["layer", "global"]) -> None:
    job = mlp_job()
    after = ChannelPruning(sparsity=0.99, scope=scope).apply(job).model
    shapes = {name: tuple(tensor.shape) for name, tensor in weights(after).items()}
    assert shapes["one.weight"] == (1, 6)
    assert shapes["two.weight"] == (1, 1)
    assert shapes["out.weight"] == (4, 1)


def test_repair_is_least_squares_on_the_data() -> None:
    """Its error on the calibration data is that of numpy's lstsq, for a linear layer and a convolution behind another."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, (2, 3), stride=(1, 2), padding=(0, 1)), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 5 * 3, 3),
    )  # fmt: skip
    with torch.no_grad():
        model.get_parameter("0.bias").add_(1.0)  # so that channels resemble each other and there is something to repair
    images = [torch.randn(30, 2, 8, 8), torch.randn(20, 2, 8, 8)]
    job = prepare(model, Task(calibration=images))
    after = only(ChannelPruning(sparsity=0.5, ridge=1e-9), "0").apply(job).model
    x = model[1](model[0](torch.cat(images))).detach()
    rows = functional.unfold(functional.pad(x, (1, 1)), (2, 3), stride=(1, 2)).transpose(1, 2).flatten(0, 1).double().numpy()
    stays = kept(model, after, "0")
    columns = [c * 6 + place for c in stays for place in range(6)]
    weight = model.get_parameter("2.weight").detach().flatten(1).double().numpy()
    best = np.linalg.lstsq(rows[:, columns], rows @ weight.T, rcond=None)[0].T
    found = after.get_parameter("2.weight").detach().flatten(1).double().numpy()
    assert np.linalg.norm(found - best) <= 1e-4 * np.linalg.norm(best)
    errors = [np.linalg.norm(rows[:, columns] @ w.T - rows @ weight.T) for w in (found, best, weight[:, columns])]
    assert errors[0] <= (1 + 1e-6) * errors[1]
    assert errors[1] < 0.7 * errors[2]


def test_repair_of_a_layer_that_reads_two_groups_is_joint() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))

    model, inputs = Branches(), torch.randn(200, 5)
    after = ChannelPruning(sparsity=0.5, ridge=1e-9).apply(prepare(model, Task(calibration=[inputs]))).model
    x = torch.cat([model.left(inputs).relu(), model.right(inputs).relu()], 1).detach().double().numpy()
    columns = kept(model, after, "left") + [6 + c for c in kept(model, after, "right")]
    wanted = x @ model.out.weight.detach().double().numpy().T
    best = np.linalg.lstsq(x[:, columns], wanted, rcond=None)[0].T
    found = after.get_parameter("out.weight").detach().double().numpy()
    assert np.linalg.norm(found - best) <= 1e-4 * np.linalg.norm(best)


def test_channels_that_never_fire_cost_nothing() -> None:
    """Two channels are all that ever fires, and both stay; inputs that are zero do not upset the repair."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[:2].mul_(0.01)
        model.get_parameter("0.bias")[:2] = -10.0
        model.get_parameter("2.weight")[:, :2].mul_(0.01)
    inputs = torch.randn(50, 3)
    after = ChannelPruning(sparsity=0.5).apply(prepare(model, Task(calibration=[inputs]))).model
    assert kept(model, after, "0") == [2, 3]
    assert_near(after(inputs), model(inputs), 1e-6)


def test_ledger_has_each_site_once_with_the_loss_of_its_group() -> None:
    job = replace(mlp_job(), explain=True)
    after = ChannelPruning(sparsity=0.5).apply(job)
    rows = {row.site: row for row in after.ledger}
    assert len(rows) == len(after.ledger)
    assert set(rows) == {"one.weight", "one.bias", "two.weight", "two.bias", "out.weight"}
    for name, row in rows.items():
        assert row.bits_after < row.bits_before
        assert row.predicted is None
        assert (row.loss is not None) == (name in ("one.weight", "two.weight"))
    alone = only(ChannelPruning(sparsity=0.5), "one").apply(job)
    probe = Probe(job)
    assert rows["one.weight"].loss == pytest.approx(probe.loss(alone.model) - probe.base, abs=1e-7)


def test_restrictions_and_reasons() -> None:
    job = job_of("conv")
    after = only(ChannelPruning(sparsity=0.5), "deep*").apply(job)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights(after.model).items()}
    assert shapes["deep.weight"] == (12, 16, 3, 3)
    assert shapes["hidden.weight"] == (32, 48)
    assert shapes["conv.weight"] == (16, 3, 3, 3)
    everywhere = ChannelPruning(sparsity=0.5).apply(only(KMeans(clusters=4), "deep").apply(job))
    notes = {row.site: row.note for row in everywhere.ledger if row.method == "channels" and row.note}
    assert notes["deep.weight"] == "it holds a form already, and structure comes before sparsity and precision"
    assert "no plain parameter" in notes["conv.weight"]
    with pytest.raises(NotApplicable, match=r"channels: nothing to do\. out\.weight: its outputs are the model's"):
        only(ChannelPruning(sparsity=0.5), "out").apply(job)


def test_channels_made_together_are_selected_together() -> None:
    model, inputs = built("named")
    job = prepare(model, Task(calibration=[inputs]))
    with pytest.raises(NotApplicable, match=r"left\.weight: its channels are coupled to those of right\.weight, which is"):
        only(ChannelPruning(sparsity=0.5), "left").apply(job)


@pytest.mark.parametrize("first", [KMeans(clusters=4), MagnitudePruning(sparsity=0.5), RoundToNearest(bits=4)])
def test_structure_comes_first(first: Any) -> None:
    job = job_of("conv")
    with pytest.raises(NotApplicable, match=r"^channels: .*Structure comes first"):
        check_order(chain(first, ChannelPruning(sparsity=0.5)), job)
    with pytest.raises(NotApplicable, match=r"^channels: nothing to do\. .*holds a form already"):
        ChannelPruning(sparsity=0.5).apply(first.apply(job))


def test_goes_on_with_every_other_step(tmp_path: Path) -> None:
    job = job_of("conv")
    steps = chain(
        ChannelPruning(sparsity=0.25), ChannelPruning(sparsity=0.25), Recover(epochs=1), only(SVD(rank=4), "hidden"),
        MagnitudePruning(sparsity=0.5), KMeans(clusters=8), Half(), Recover(epochs=1),
    )  # fmt: skip
    check_order(steps, job)
    after = steps.apply(job)
    assert weights(after.model)["deep.weight"].shape == (14, 9, 3, 3)
    loaded = through_file(after, after.model, tmp_path)
    assert_equal(weights(loaded), weights(after.model))
    assert torch.equal(output(after, loaded), output(after, after.model))


def test_the_smaller_model_exports(tmp_path: Path) -> None:
    job = chain(ChannelPruning(sparsity=0.5), KMeans(clusters=16)).apply(job_of("conv"))
    inputs = batch_of(job)[0]
    graph = onnx_graph.bind(onnx_graph.export(lower(job.model, ONNXRUNTIME).eval(), inputs), job.model)
    write_file(tmp_path / "m.kogata", pack(job.model, graph))
    assert_near(kogata.open(tmp_path / "m.kogata")(inputs), output(job, job.model), 1e-4)
    loaded = kogata.load(tmp_path / "m.kogata", into=ConvNet())
    assert torch.equal(output(job, loaded), output(job, job.model))


def test_scores_that_need_a_loss_say_so() -> None:
    job = prepare(Mlp(), Task(calibration=[torch.randn(5, 6)]))
    with pytest.raises(DataError, match=r"channels: score 'taylor' needs the loss"):
        ChannelPruning(sparsity=0.5, score="taylor").apply(job)


@pytest.mark.parametrize("settings", [{"sparsity": -0.1}, {"sparsity": 1.0}, {"sparsity": 0.5, "ridge": 0.0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="channels: "):
        ChannelPruning(**settings)

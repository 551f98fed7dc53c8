"""Neuron merging: identical neurons merge for nothing; otherwise as the paper's procedure, written out, would have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.job import Job
from kogata.methods import KMeans, Recover
from kogata.methods.base.compose import chain, only
from kogata.methods.base.order import check_order
from kogata.methods.pruning.neuron_merging import NeuronMerging
from kogata.testing.comparisons import assert_equal, assert_near, output, through_file, weights
from kogata.testing.models import job_of


def mlp(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


def job_for(model: nn.Module) -> Job:
    return prepare(model.eval(), Task(calibration=[torch.randn(16, 5)]))


def by_the_paper(w: np.ndarray, b: np.ndarray, a: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """All pairs looked at anew before each merge: the neurons left, and their outgoing weights ``[outputs, left]``."""
    left, a = list(range(len(w))), a.copy()
    for _ in range(count):
        pairs = [
            (float((np.sum((w[i] - w[j]) ** 2) + (b[i] - b[j]) ** 2) * np.mean(a[:, j] ** 2)), j, i)
            for j in left for i in left if i != j
        ]  # fmt: skip
        _, j, i = min(pairs)
        a[:, i] += a[:, j]
        left.remove(j)
    return left, a[:, left]


@pytest.mark.parametrize("width", [6, 40])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.84])
def test_brute_force(width: int, sparsity: float) -> None:
    model = mlp(width)
    w, b, a = (model.get_parameter(name).detach().double().numpy() for name in ("0.weight", "0.bias", "3.weight"))
    after = NeuronMerging(sparsity=sparsity).apply(job_for(model)).model
    left, outgoing = by_the_paper(w, b, a, round(sparsity * width))
    found = weights(after)
    assert_equal({"w": found["0.weight"], "b": found["0.bias"]}, {
        "w": model.get_parameter("0.weight").detach()[left], "b": model.get_parameter("0.bias").detach()[left],
    })  # fmt: skip
    assert_near(found["3.weight"], torch.from_numpy(outgoing).float(), 1e-6)
    assert torch.equal(found["3.bias"], model.get_parameter("3.bias").detach())


def test_identical_neurons_merge_without_a_change() -> None:
    """Each of four neurons there three times, scattered: two thirds go, and the output stays."""
    model = mlp(12)
    with torch.no_grad():
        same = torch.randperm(12) % 4
        model.get_parameter("0.weight").copy_(torch.randn(4, 5)[same])
        model.get_parameter("0.bias").copy_(torch.randn(4)[same])
    job = replace(job_for(model), explain=True)
    after = NeuronMerging(sparsity=2 / 3).apply(job)
    assert weights(after.model)["0.weight"].shape == (4, 5)
    assert len(weights(after.model)["0.weight"].unique(dim=0)) == 4
    inputs = torch.randn(100, 5)
    assert_near(after.model(inputs), job.model(inputs), 1e-6)
    loss = next(row.loss for row in after.ledger if row.site == "0.weight")
    assert loss == pytest.approx(0, abs=1e-10)


def test_a_difference_of_bias_is_a_difference() -> None:
    model = mlp(3)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, 1.0, 1.1])[:, None].expand(3, 5))
        model.get_parameter("0.bias").copy_(torch.tensor([0.0, 5.0, 0.0]))
        model.get_parameter("3.weight").fill_(1.0)
    after = NeuronMerging(sparsity=1 / 3).apply(job_for(model)).model
    assert sorted(weights(after)["0.bias"].tolist()) == [0.0, 5.0]
    assert sorted(weights(after)["3.weight"][0].tolist()) == [1.0, 2.0]


def test_several_layers_each_lose_their_fraction() -> None:
    model = nn.Sequential(
        nn.Linear(5, 10, bias=False), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 2),
    )  # fmt: skip
    after = NeuronMerging(sparsity=0.5).apply(job_for(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights(after.model).items() if tensor.ndim == 2}
    assert shapes == {"0.weight": (5, 5), "2.weight": (4, 5), "4.weight": (6, 4), "6.weight": (2, 6)}
    alone = only(NeuronMerging(sparsity=0.5), "2").apply(job_for(model)).model
    assert weights(alone)["0.weight"].shape == (10, 5)
    assert weights(alone)["2.weight"].shape == (4, 10)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
        nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)),
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Unflatten(1, (-1, 1)), nn.Conv1d(6, 3, 1)),
    ],
    ids=["tanh", "no rectifier", "normalized", "convolution"],
)
def test_other_neurons_are_left_alone(model: nn.Module) -> None:
    with pytest.raises(NotApplicable, match=r"^neuron-merging: nothing to do\..* 0\.weight: its channels are not ReLU neurons"):
        NeuronMerging(sparsity=0.5).apply(job_for(model))


def test_convolutions_in_front_stay(tmp_path: Path) -> None:
    job = job_of("conv")
    after = chain(NeuronMerging(sparsity=0.75), Recover(epochs=1), KMeans(clusters=4)).apply(job)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights(after.model).items() if tensor.ndim > 1}
    assert shapes == {
        "conv.weight": (16, 3, 3, 3), "deep.weight": (24, 16, 3, 3), "hidden.weight": (8, 96), "out.weight": (6, 8),
    }  # fmt: skip
    loaded = through_file(after, after.model, tmp_path)
    assert torch.equal(output(after, loaded), output(after, after.model))


def test_the_hidden_layer_of_a_transformer() -> None:
    after = NeuronMerging(sparsity=0.5).apply(job_of("attention"))
    assert weights(after.model)["encoder.linear1.weight"].shape == (16, 16)


def test_structure_comes_first() -> None:
    with pytest.raises(NotApplicable, match=r"^neuron-merging: .*Structure comes first"):
        check_order(chain(KMeans(clusters=4), NeuronMerging(sparsity=0.5)), job_of("conv"))


@pytest.mark.parametrize("settings", [{"sparsity": -0.1}, {"sparsity": 1.0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="neuron-merging: sparsity"):
        NeuronMerging(**settings)

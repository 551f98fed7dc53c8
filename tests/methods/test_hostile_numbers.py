"""Data and weights at the edges: dead inputs, empty batches, parameters of size zero, squares that overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kogata
from kogata.errors import DataError
from kogata.methods import (
    GPTQ,
    LSQ,
    ChannelPruning,
    KMeans,
    ProductQuantization,
    Recover,
    RoundToNearest,
    SoftWeightSharing,
    Ternary,
    Wanda,
)  # fmt: skip
from kogata.methods.base.method import Method
from kogata.methods.pruning.channel_pruning import repaired

RECOVER = Recover(epochs=1, learning_rate=1e-2)


class Net(nn.Module):
    def __init__(self, *, nothing: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.hidden, self.out = (
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.Linear(16, 32),
            nn.Linear(32, 4),
        )
        self.nothing = nn.Linear(1, 4) if nothing else None
        if self.nothing is not None:  # nn.Linear(0, 4) would warn
            self.nothing.in_features, self.nothing.weight = 0, nn.Parameter(torch.zeros(4, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(torch.relu(self.norm(self.conv(x))).mean((2, 3)))))


def batches(scale: float = 1.0, last: int = 16) -> list[tuple[Tensor, Tensor]]:
    return [(scale * torch.randn(n, 3, 6, 6), torch.randint(4, (n,))) for n in (16, 16, last)]


def task(data: list[tuple[Tensor, Tensor]]) -> kogata.Task:
    return kogata.Task(calibration=data, train=data, loss=nn.functional.cross_entropy)


@pytest.mark.parametrize("method", [GPTQ(bits=4, group=8), Wanda(sparsity=0.5)], ids=["gptq", "wanda"])
def test_an_empty_last_batch_changes_nothing(method: Method, tmp_path: Path) -> None:
    net, data = Net().eval(), batches()
    empty = [*data, (torch.zeros(0, 3, 6, 6), torch.zeros(0, dtype=torch.long))]
    one = kogata.compress(net, task(data), method, output=tmp_path / "one", engine=None)
    other = kogata.compress(net, task(empty), method, output=tmp_path / "other", engine=None)
    assert one.path.read_bytes() == other.path.read_bytes()


@pytest.mark.parametrize(
    "method", [RoundToNearest(bits=4, group=8), KMeans(clusters=4), Ternary(recover=RECOVER), LSQ(bits=4, recover=RECOVER)],
    ids=["rtn", "k-means", "ternary", "lsq"],
)  # fmt: skip
def test_weights_of_size_zero_are_left_alone(method: Method, tmp_path: Path) -> None:
    result = kogata.compress(Net(nothing=True).eval(), task(batches()), method, output=tmp_path / "o", engine=None)
    assert isinstance(kogata.load(result.path, into=Net(nothing=True)).get_submodule("nothing"), nn.Linear)
    assert any("nothing.weight" in note and "it holds no numbers" in note for note in result.report.notes)


def test_sub_vectors_whose_squares_overflow(tmp_path: Path) -> None:
    net = Net().eval()
    with torch.no_grad():
        net.hidden.weight[3, 4], net.hidden.weight[3, 5] = 1e30, -1e30
    result = kogata.compress(
        net, task(batches()), ProductQuantization(clusters=4, length=4), output=tmp_path / "o", engine=None
    )
    assert torch.isfinite(result.model(batches()[0][0])).all()


def test_statistics_that_overflow_in_training_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lsq: the buffer .*running_var became NaN or infinite.*Scale the training data down"):
        kogata.compress(Net(), task(batches(1e20)), LSQ(bits=4, recover=RECOVER), output=tmp_path / "o", engine=None)


def test_dead_inputs_leave_the_repair_of_the_others_as_it_is() -> None:
    weight, x = torch.randn(5, 8), torch.randn(64, 8, dtype=torch.float64)
    x[:, 2] = 0
    found = repaired(weight, x.T @ x, torch.tensor([6]), 1e-9)
    keep, alive = [0, 1, 2, 3, 4, 5, 7], [0, 1, 3, 4, 5, 7]
    wanted = torch.linalg.lstsq(x[:, alive], x @ weight.double().T).solution.T
    assert torch.allclose(found[:, alive], wanted, rtol=1e-5)
    assert torch.equal(found[:, 2], weight[:, 2].double())
    assert torch.equal(repaired(weight, torch.zeros(8, 8), torch.tensor([6]), 1e-3)[:, keep], weight[:, keep].double())


def test_channels_behind_a_dead_layer_are_removed(tmp_path: Path) -> None:
    net = Net().eval()
    with torch.no_grad():
        net.hidden.weight.zero_()
        net.hidden.bias.fill_(-1)
    result = kogata.compress(net, task(batches()), ChannelPruning(sparsity=0.5), output=tmp_path / "o", engine=None)
    assert torch.isfinite(result.model(batches()[0][0])).all()


def test_a_batch_of_nan_ends_the_training_of_a_mixture_with_its_cause() -> None:
    data = batches()
    data[1][0][3, 1, 2, 2] = float("nan")
    task = kogata.Task(calibration=data[:1], train=data, loss=nn.functional.cross_entropy)
    with pytest.raises(DataError, match="soft-sharing: the loss became nan in epoch 1"):
        SoftWeightSharing(recover=RECOVER).apply(kogata.prepare(Net(), task))

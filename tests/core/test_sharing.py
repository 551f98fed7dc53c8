"""Tensors that share memory are stored once, follow one another, or are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kogata
from kogata.job import Where
from kogata.methods import ChannelPruning, Half, KMeans, RoundToNearest
from kogata.network.sites import buffers_of, left_alone, sites_of
from kogata.network.surgery import clone
from kogata.storage.read import read_file
from kogata.testing.comparisons import weights
from tests.storage.reader import File


class Tied(nn.Module):
    """A table of words that is the output layer, too, by one parameter or by ``.data``."""

    def __init__(self, *, by_data: bool) -> None:
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(80, 24), nn.Linear(24, 24), nn.Linear(24, 80, bias=False)
        if by_data:
            self.out.weight.data = self.words.weight.data
        else:
            self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.words(tokens).mean(1))))


class Shared(nn.Module):
    """Three layers with one table, and a step count that each has for itself."""

    def __init__(self) -> None:
        super().__init__()
        table, steps = torch.randn(16, 16), torch.arange(40)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        for layer in self.layers:
            layer.register_buffer("table", table)
            layer.register_buffer("steps", steps)
            layer.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + x @ layer.get_buffer("table")
        return x


def tokens() -> list[Tensor]:
    return [torch.randint(0, 80, (16, 5))]


@pytest.mark.parametrize("by_data", [True, False])
def test_weights_tied_through_data_are_one_weight(by_data: bool, tmp_path: Path) -> None:
    model = Tied(by_data=by_data)
    assert [site.aliases for site in sites_of(model) if site.name == "words.weight"] == [("out.weight",)]
    result = kogata.compress(model, kogata.Task(calibration=tokens()), KMeans(clusters=4), engine=None, output=tmp_path / "run")
    assert len(read_file(result.path).forms) == 3
    found = weights(kogata.load(result.path, into=Tied(by_data=by_data)))
    assert len(found["words.weight"].unique()) == 4
    (tied,) = [site for site in sites_of(result.model) if site.aliases]
    assert (tied.name, tied.aliases) == ("words.weight", ("out.weight",))


@pytest.mark.parametrize("by_data", [True, False])
def test_channels_of_weights_tied_through_data_are_removed_from_all(by_data: bool) -> None:
    task = kogata.Task(calibration=tokens())
    model = ChannelPruning(sparsity=0.5).apply(kogata.prepare(Tied(by_data=by_data), task)).model
    assert model.get_parameter("out.weight") is model.get_parameter("words.weight")
    assert model(tokens()[0]).shape == (16, 80)


def test_a_copy_is_tied_as_the_model_is() -> None:
    model = Tied(by_data=True)
    twin = clone(model, share=False)
    assert twin.get_parameter("out.weight") is twin.get_parameter("words.weight")
    with torch.no_grad():
        twin.get_parameter("out.weight").zero_()
    assert model.words.weight.any()
    assert torch.equal(twin(tokens()[0]), torch.zeros(16, 80))


def test_a_buffer_of_several_layers_is_stored_once(tmp_path: Path) -> None:
    model, other = Shared(), Shared()
    kogata.save(model, tmp_path / "shared.kogata")
    artifact = read_file(tmp_path / "shared.kogata")
    stored = [plane.site for plane in artifact.packed.planes]
    assert stored.count("layers.0.table") == stored.count("layers.0.steps") == 1
    assert not {"layers.1.table", "layers.2.table", "layers.1.steps"} & set(stored)
    kogata.load(tmp_path / "shared.kogata", into=other)
    for name, buffer in buffers_of(model).items():
        assert torch.equal(other.get_buffer(name), buffer)
        assert torch.equal(torch.from_numpy(File((tmp_path / "shared.kogata").read_bytes()).buffers[name][0]), buffer)
    assert other.get_buffer("layers.2.table") is other.get_buffer("layers.0.table")
    assert other.get_buffer("layers.2.count") is not other.get_buffer("layers.0.count")


@pytest.mark.parametrize("kind", ["buffer", "list", "view", "transposed"])
def test_what_no_form_could_follow_stays_and_is_named(kind: str, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.kept = nn.Linear(48, 48), nn.Linear(48, 48), nn.ParameterList()
            self.part = nn.Linear(48, 24 if kind == "view" else 48)
            if kind == "buffer":
                self.register_buffer("twin", self.first.weight.data)
            elif kind == "list":
                self.kept.append(self.first.weight)
            elif kind == "view":
                self.part.weight.data = self.first.weight.data[24:]
            else:
                self.part.weight.data = self.first.weight.data.T

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(self.first(x))
            x = x @ self.get_buffer("twin") if kind == "buffer" else x
            x = x @ self.kept[0] if kind == "list" else x
            return self.part(x) if kind in ("view", "transposed") else x

    net, x = Net(), torch.randn(20, 48)
    result = kogata.compress(net, kogata.Task(calibration=[x]), RoundToNearest(bits=2), engine=None, output=tmp_path / "run")
    assert [site.name for site in sites_of(result.model) if site.name.startswith("first")] == ["first.bias"]
    assert torch.equal(result.model.get_parameter("first.weight"), net.first.weight)
    assert any("first.weight" in note and "shares memory with" in note for note in result.report.notes)
    loaded = kogata.load(result.path, into=Net())
    assert torch.equal(loaded(x), result.model(x))
    assert left_alone(net).keys() >= {"first.weight"}


def test_running_statistics_in_half_precision_stay_shared(tmp_path: Path) -> None:
    one, other = nn.BatchNorm1d(40), nn.BatchNorm1d(40)
    nn.init.uniform_(one.get_buffer("running_mean"))
    other.running_mean = one.running_mean
    net = nn.Sequential(nn.Linear(8, 40), one, nn.ReLU(), other)
    job = kogata.prepare(net, kogata.Task(calibration=[torch.randn(64, 8)]))
    made = kogata.only(Half(), Where(vectors=True)).apply(job).model
    assert made.get_buffer("1.running_mean") is made.get_buffer("3.running_mean")

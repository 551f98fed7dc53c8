"""A shallower net is the net without those layers, in memory and from its file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.batches import first_batch
from kogata.calibration.normalization import PRIOR
from kogata.calibration.prepare import prepare
from kogata.errors import FileFormatError, NotApplicable, UsageError
from kogata.job import Job
from kogata.methods.base.compose import chain, only
from kogata.methods.distillation.shallower import Shallower
from kogata.methods.quantization.round_to_nearest import RoundToNearest
from kogata.network import depth
from kogata.network.sites import model_bits, sites_of
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.tasks.networks import cifar_resnet
from kogata.testing.comparisons import assert_near


class Stack(nn.Module):
    """What a user may write: a list of like layers, called in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(5))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1))


def job_of(model: nn.Module, inputs: Tensor) -> Job:
    return prepare(model.eval(), Task(calibration=[inputs]))


@pytest.fixture
def stack() -> Job:
    torch.manual_seed(0)
    return job_of(Stack(), torch.randn(4, 3, 8))


@torch.no_grad()
def by_hand(model: nn.Module, kept: tuple[int, ...], x: Tensor) -> Tensor:
    assert isinstance(model, Stack)
    for place in kept:
        x = model.layers[place](x)
    return model.out(x.mean(1))


def output(job: Job, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(first_batch(job.model, job.task)[0])


@pytest.mark.parametrize(("keep", "kept"), [(3, (0, 2, 4)), (1, (0,)), (2, (0, 4)), ((1, 3, 4), (1, 3, 4))])
def test_it_computes_what_the_layers_that_stay_compute(stack: Job, keep: Any, kept: tuple[int, ...]) -> None:
    job = Shallower(lists="layers", keep=keep).apply(stack)
    assert torch.equal(output(stack, job.model), by_hand(stack.model, kept, first_batch(stack.model, stack.task)[0]))
    assert depth.shortened(job.model) == {"layers": kept}
    assert len(stack.model.get_submodule("layers")._modules) == 5, "the given model stays"
    dropped = {f"layers.{place}" for place in range(5)} - {f"layers.{place}" for place in kept}
    assert {row.site for row in job.ledger} == dropped
    gained = model_bits(stack.model) - model_bits(job.model)
    assert sum(row.bits_before for row in job.ledger) == pytest.approx(gained)


def test_the_file_loads_into_the_original_class(stack: Job, tmp_path: Path) -> None:
    job = chain(Shallower(keep=3), RoundToNearest(bits=8), Shallower(keep=(0, 4))).apply(stack)  # twice: of what is left
    save(job.model, tmp_path / "m.kogata")
    fresh = Stack().eval()
    loaded = load(tmp_path / "m.kogata", into=fresh)
    assert loaded is fresh
    assert torch.equal(output(job, loaded), output(job, job.model))
    assert depth.shortened(loaded) == {"layers": (0, 4)}
    save(loaded, tmp_path / "again.kogata")
    assert (tmp_path / "again.kogata").read_bytes() == (tmp_path / "m.kogata").read_bytes()
    again = load(tmp_path / "m.kogata", into=loaded)  # one that is as short already
    assert torch.equal(output(job, again), output(job, job.model))


def test_a_file_of_another_depth_is_refused_and_the_model_stays(stack: Job, tmp_path: Path) -> None:
    save(Shallower(keep=(0, 4)).apply(stack).model, tmp_path / "m.kogata")
    other = Stack()
    depth.keep(other, "layers", [0, 1, 2])
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(FileFormatError, match=r"entries \[0, 4\] should remain, which holds \[0, 1, 2\]"):
        load(tmp_path / "m.kogata", into=other)
    assert depth.shortened(other) == {"layers": (0, 1, 2)}
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(FileFormatError, match="has no list of layers 'layers'"):
        load(tmp_path / "m.kogata", into=nn.Linear(8, 3))


@pytest.mark.parametrize("places", [[], [1, 1], [3, 1], [0, 9], [-1, 0], [True], ["0"], [0.0], "01", [[0]]])
def test_a_damaged_list_of_places_is_refused(places: Any) -> None:
    model = Stack()
    with pytest.raises(ValueError, match="should remain, which holds"):
        depth.keep(model, "layers", places)
    assert len(model.layers) == 5


def test_blocks_of_a_residual_net_that_are_alike_can_go(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = cifar_resnet(20, width=0.25)
    job = job_of(net, torch.randn(2, 3, 32, 32))
    smaller = Shallower(keep=1).apply(job).model
    wanted = copy.deepcopy(nn.Sequential(*(layer for place, layer in enumerate(net) if place not in (4, 5, 8, 11)))).eval()
    for buffer, moved in zip(wanted.buffers(), smaller.buffers(), strict=True):
        buffer.copy_(moved)
    assert torch.equal(output(job, smaller), output(job, wanted))
    save(smaller, tmp_path / "m.kogata")
    loaded = load(tmp_path / "m.kogata", into=cifar_resnet(20, width=0.25).eval())
    assert torch.equal(output(job, loaded), output(job, wanted))
    deeper = sites_of(smaller)[-1]
    assert job.reference.get_submodule(deeper.module) is net[-1], "what stays keeps its name"


def test_nested_lists(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))) for _ in range(3))).eval()

    torch.manual_seed(0)
    net = build()
    job = job_of(net, torch.randn(5, 4))
    smaller = Shallower(keep=2).apply(job).model
    x = first_batch(job.model, job.task)[0]
    for outer in (0, 2):
        for inner in (0, 2):
            x = net.get_submodule(f"{outer}.{inner}")(x)
    assert torch.equal(output(job, smaller), x)
    save(smaller, tmp_path / "m.kogata")
    assert torch.equal(output(job, load(tmp_path / "m.kogata", into=build())), x)


def test_what_it_cannot_do_it_refuses_with_the_reason(stack: Job) -> None:
    torch.manual_seed(0)
    job = job_of(cifar_resnet(20, width=0.25), torch.randn(2, 3, 32, 32))
    with pytest.raises(NotApplicable, match=r"without 6 the model fails: RuntimeError"):
        Shallower(lists="", keep=tuple(place for place in range(15) if place != 6)).apply(job)
    with pytest.raises(NotApplicable, match="nothing to do"):
        Shallower(keep=3).apply(job)
    with pytest.raises(NotApplicable, match=r"holds no entries \[5\]"):
        Shallower(lists="layers", keep=(0, 5)).apply(stack)
    with pytest.raises(UsageError, match="ascending"):
        Shallower(keep=(2, 1))
    with pytest.raises(UsageError, match="1 or more"):
        Shallower(keep=0)


def test_layers_that_are_not_selected_stay(stack: Job) -> None:
    job = only(Shallower(keep=2), "layers.[12].*").apply(stack)
    assert depth.shortened(job.model) == {"layers": (0, 3, 4)}
    assert [row.site for row in job.ledger if row.note] == ["layers.3"]


def test_transformers_encoder() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=6, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.BertModel(config).eval()
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6)}
    smaller = Shallower(keep=(0, 2, 5)).apply(prepare(model, Task(calibration=[inputs]))).model
    fewer: nn.Module = transformers.BertModel(transformers.BertConfig(**{**config.to_dict(), "num_hidden_layers": 3})).eval()
    fewer.load_state_dict(smaller.state_dict())
    with torch.no_grad():
        assert torch.equal(smaller(**inputs).last_hidden_state, fewer(**inputs).last_hidden_state)


class Normalized(nn.Module):
    """A residual stack whose branches normalize by running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_running_statistics_of_layers_that_are_left_follow_from_their_own() -> None:
    """Layer 3 becomes layer 1 and gets the inputs of layer 1: its mean moves from its own by the difference of both."""
    torch.manual_seed(1)
    model, inputs = Normalized(), torch.randn(500, 8)
    for layer in model.layers:
        nn.init.uniform_(layer.get_buffer("1.running_mean"))
    job = job_of(model, inputs)
    after = Shallower(keep=(0, 3), lists="layers").apply(job)
    assert after.renewed == ("layers.1.1",)
    with torch.no_grad():
        states = [inputs]
        for layer in model.layers:
            states.append(states[-1] + layer(states[-1]))
        was, now = (model.layers[3].get_submodule("0")(state).mean(0) for state in (states[3], states[1]))
    wanted = model.layers[3].get_buffer("1.running_mean") + 500 / (500 + PRIOR) * (now - was)
    assert_near(after.model.get_buffer("layers.1.1.running_mean"), wanted, 1e-5)
    assert torch.equal(after.model.get_buffer("layers.0.1.running_mean"), model.layers[0].get_buffer("1.running_mean"))

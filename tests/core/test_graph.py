"""Coupled channels: a model without some of them computes what the whole model does with them zeroed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable
from kogata.methods import KMeans
from kogata.methods.base.compose import only
from kogata.network import surgery
from kogata.network.batch import call, evaluating
from kogata.network.channels.groups import Coupling, Cut, coupled, remove
from kogata.testing.comparisons import assert_near, assert_untouched, snapshot, weights
from kogata.testing.models import job_of
from tests.core.architectures import ARCHITECTURES, built, images, some


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def silenced(model: nn.Module, coupling: Coupling, cuts: list[Cut]) -> nn.Module:
    """The whole model in which nothing reads these channels: the columns that multiply them are zero."""
    twin = surgery.clone(model, share=False)
    for group, channels in cuts:
        for part in group.slices:
            if part.reads:
                with torch.no_grad():
                    twin.get_parameter(part.name).index_fill_(part.axis, part.index_CK[channels].flatten(), 0)
    return twin


def test_groups(name: str) -> None:
    model, inputs = built(name)
    found = {
        frozenset(part.name.rpartition(".")[0] for part in group.slices if part.makes or not part.reads)
        for group in coupled(model, inputs).groups
    }
    assert found == ARCHITECTURES[name][2]


def test_without_channels_is_as_if_nothing_read_them(name: str) -> None:
    model, inputs = built(name)
    before = snapshot(model)
    coupling = coupled(model, inputs)
    for cuts in (some(coupling) for _ in range(5)):
        smaller = remove(model, cuts)
        with evaluating(smaller), torch.no_grad():
            assert_near(call(smaller, inputs), call(silenced(model, coupling, cuts), inputs), 1e-5)
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert_untouched(model, before)


def test_the_integers_of_the_layers_follow(name: str) -> None:
    """A layer built from its own integers has tensors of the same shapes."""
    model, inputs = built(name)
    for layer in remove(model, some(coupled(model, inputs))).modules():
        match layer:
            case nn.Linear():
                fresh: nn.Module = nn.Linear(layer.in_features, layer.out_features)
            case nn.Conv2d() | nn.ConvTranspose2d():
                sizes: Any = layer.in_channels, layer.out_channels, layer.kernel_size
                fresh = type(layer)(*sizes, groups=layer.groups)
            case nn.BatchNorm2d():
                fresh = nn.BatchNorm2d(layer.num_features)
            case nn.Embedding():
                fresh = nn.Embedding(layer.num_embeddings, layer.embedding_dim)
            case _:
                continue
        fresh_shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
        shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
        assert fresh_shapes.items() >= shapes.items()


def test_everything_else_is_the_same_tensor(name: str) -> None:
    model, inputs = built(name)
    group = coupled(model, inputs).groups[0]
    smaller = remove(model, [(group, torch.tensor([1]))])
    touched = {part.name for part in group.slices}
    for key, tensor in model.named_parameters():
        assert (smaller.get_parameter(key) is tensor) == (key not in touched)


class Lambda(nn.Module):
    """``before``, a function, ``after``."""

    def __init__(self, function: Callable[[Tensor], Tensor], before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.function, self.after = before, function, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


REFUSALS: Mapping[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), "softmax needs all its channels"),
    "norm": (nn.LayerNorm(6), "layer_norm needs all its channels"),
    "groups": (nn.GroupNorm(2, 8), "group_norm needs all its channels"),
    "shuffle": (shuffled, "view needs all its channels"),
    "halves": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), "chunk needs all its channels"),
    "slice": (lambda x: torch.cat([x[:, :4], x[:, 4:]], 1), "slice needs all its channels"),
    "sum": (lambda x: x - x.sum(1, keepdim=True), "sum needs all its channels"),
    "constant": (lambda x: x + torch.arange(8.0).reshape(8, 1, 1), "add joins its channels with values that no layer made"),
    "grouped": (nn.Conv2d(8, 8, 1, groups=2), "conv2d needs all its channels"),
    "literal": (lambda x: x.view(len(x), 8, 36).unflatten(2, (6, 6)), "the model fails with a channel less"),
    "literal mean": (lambda x: x.sum(1, keepdim=True) * 0 + x, "sum needs"),
    "axis": (lambda x: x.transpose(1, 2), "its channels are read along another axis"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_mixes_channels_is_left_alone(case: str) -> None:
    function, reason = REFUSALS[case]
    if case == "norm":
        layers, inputs = (nn.Linear(3, 6), nn.Linear(6, 2)), torch.randn(3, 3)
    elif case == "axis":
        layers, inputs = (nn.Conv2d(3, 8, 1), nn.Conv2d(6, 2, 1)), images()
    else:
        layers, inputs = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), images()
    coupling = coupled(Lambda(function, *layers), inputs)
    assert coupling.groups == ()
    assert reason in coupling.refused["before.weight"]
    assert coupling.refused["after.weight"] == "its outputs are the model's"


def test_a_weight_that_is_read_past_its_layer_is_left_alone() -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)) + self.one.weight.square().mean()

    coupling = coupled(Penalized(), torch.randn(2, 4))
    assert coupling.groups == ()
    assert coupling.refused["one.weight"] == "a function reads it past its layer"


def test_a_layer_called_twice_keeps_both_its_sides_together() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.out = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.again(torch.relu(self.again(torch.relu(self.first(x)))))))

    model, inputs = Twice(), torch.randn(3, 4)
    (group,) = coupled(model, inputs).groups
    smaller = remove(model, [(group, torch.tensor([0, 3]))])
    assert smaller.get_parameter("again.weight").shape == (4, 4)
    cuts = [(group, torch.tensor([0, 3]))]
    assert_near(smaller(inputs), silenced(model, Coupling((group,), {}), cuts)(inputs), 1e-5)


def test_a_form_keeps_its_layer_whole() -> None:
    job = only(KMeans(clusters=4), "deep").apply(job_of("conv"))
    coupling = coupled(job.model, torch.randn(3, 3, 8, 8))
    assert [group.name for group in coupling.groups] == ["hidden.weight"]
    assert "no plain parameter" in coupling.refused["conv.weight"]
    assert weights(remove(job.model, some(coupling))).keys() == weights(job.model).keys()


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if float(x.sum()) > 0 else x

    with pytest.raises(NotApplicable, match=r"channels of Branching cannot be followed: torch\.export fails"):
        coupled(Branching(), torch.randn(2, 3))

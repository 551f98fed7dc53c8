"""Structures that are known to be there are found, and errors are those of the outputs themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.calibration.stats import Stats
from kogata.errors import DataError, UsageError
from kogata.forms import Role
from kogata.job import Kind, Site, Task
from kogata.methods.lowrank.svd import SVD
from kogata.search import structures
from kogata.search.candidates import STRUCTURES, YARDSTICKS
from kogata.testing.comparisons import assert_untouched, snapshot


def model_of(weight: Tensor) -> nn.Sequential:
    """One layer with this weight."""
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, (kernel[0], kernel[1])) if kernel else nn.Linear(inputs, outputs)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer)


def task_of(*batches: Tensor) -> Task:
    return Task(calibration=list(batches))


def inputs_of(weight: Tensor) -> Tensor:
    return torch.randn(200, weight.shape[1]) if weight.ndim == 2 else torch.randn(8, weight.shape[1], 9, 9)


def kronecker() -> Tensor:
    return torch.stack([torch.kron(torch.randn(8, 8), torch.randn(8, 8)) for _ in range(3)]).sum(0)


def low_rank() -> Tensor:
    return torch.randn(64, 7) @ torch.randn(7, 64)


def separable() -> Tensor:
    return torch.einsum("orw,rih->oihw", torch.randn(16, 4, 3), torch.randn(4, 8, 3))


def tucker() -> Tensor:
    return torch.einsum("os,sryx,ri->oiyx", torch.randn(32, 12), torch.randn(12, 6, 3, 3), torch.randn(6, 16))


def depthwise() -> Tensor:
    return torch.einsum("oi,ihw->oihw", torch.randn(32, 8), torch.randn(8, 3, 3))


def fire() -> Tensor:
    expand = torch.randn(32, 6, 3, 3)
    expand[::2] *= functional.pad(torch.ones(1, 1), (1, 1, 1, 1))
    return torch.einsum("osyx,si->oiyx", expand, torch.randn(6, 24))


def monarch() -> Tensor:
    return torch.einsum("ljk,jki->ljki", torch.randn(8, 8, 8), torch.randn(8, 8, 8)).reshape(64, 64)


def turned() -> Tensor:
    return torch.stack([torch.rot90(weight, t, (1, 2)) for weight in torch.randn(4, 6, 3, 3) for t in range(4)])


@pytest.mark.parametrize(
    ("weight", "owners"),
    [
        (kronecker, {"kronecker"}),
        (low_rank, {"svd", "whitened-svd"}),
        (separable, {"separable"}),
        (tucker, {"tucker-2"}),
        (depthwise, {"depthwise-separable", "monarch"}),  # whose blocks are the channels here
        (fire, {"fire"}),
        (monarch, {"monarch", "butterfly"}),  # two sparse factors
        (turned, {"cyclic-filters", "group-filters"}),
    ],
)
def test_a_layer_is_given_to_the_structure_that_it_has(weight: object, owners: set[str]) -> None:
    torch.manual_seed(3)
    dense = weight()  # type: ignore[operator]
    (layer,) = structures.scores(model_of(dense), task_of(inputs_of(dense)), 0.25)
    assert layer.best is not None
    assert layer.best.structure in owners
    assert layer.best.error is not None
    assert layer.best.error < 1e-6
    others = [score.error for score in layer.structures if score.structure not in owners and score.error is not None]
    assert len(others) >= 5
    assert min(others) > 0.01


class Net(nn.Module):
    """Layers of every kind whose inputs can be seen: padded, strided, grouped, on lines, and on rows of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=2)
        self.line = nn.Conv1d(16, 24, 3, dilation=2)
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x).relu())
        return self.last(self.line(x.flatten(2)).transpose(1, 2).relu())


def test_errors_are_those_of_the_outputs() -> None:
    model, batches = Net().eval(), [torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    seen: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_children()}

    def watch(name: str, layer: nn.Module) -> Any:
        return layer.register_forward_pre_hook(lambda _, args: seen[name].append(args[0].detach()))

    handles = [watch(name, layer) for name, layer in model.named_children()]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    twin = Net().eval()
    twin.load_state_dict(model.state_dict())
    before = snapshot(twin)
    found = structures.scores(twin, task_of(*batches), 0.4)
    assert_untouched(twin, before)
    assert [layer.site for layer in found] == ["first.weight", "grouped.weight", "line.weight", "last.weight"]
    for layer in found:
        module = model.get_submodule(layer.site.removesuffix(".weight"))
        weight = module.weight.detach()  # type: ignore[union-attr, operator]
        assert isinstance(weight, Tensor)
        score = next(score for score in layer.structures if score.structure == "svd")
        rank = int(0.4 * weight.numel() / sum(weight.flatten(1).shape))
        site = Site("layer", "weight", tuple(weight.shape), Kind.OTHER, Role.MATRIX)
        other = SVD(rank=rank).encode(weight, site, Stats()).dense().detach()
        missed = wanted = 0.0
        for x in seen[layer.site.removesuffix(".weight")]:
            module.bias = None  # type: ignore[assignment]
            dense = torch.func.functional_call(module, {"weight": weight}, (x,))
            wanted += float(dense.square().sum())
            missed += float((dense - torch.func.functional_call(module, {"weight": other}, (x,))).square().sum())
        assert score.error == pytest.approx(missed / wanted, rel=1e-4)
        assert score.kept == rank * sum(weight.flatten(1).shape)
        assert score.bytes == 4 * rank * sum(weight.flatten(1).shape)


@pytest.mark.parametrize(
    "shape", [(64, 48), (10, 500), (33, 7), (16, 8, 3, 3), (27, 12, 5, 5), (12, 16, 1, 1), (24, 1, 3, 3), (18, 9, 7)]
)
@pytest.mark.parametrize("fraction", [0.06, 0.25, 0.55, 0.9])
def test_no_candidate_takes_more_than_it_may(shape: tuple[int, ...], fraction: float) -> None:
    """Either a measured error within the size, or a reason; never an exception."""
    weight, columns = torch.randn(shape), math.prod(shape[1:])
    kind = Kind.LINEAR if len(shape) == 2 else Kind.CONV
    layer = structures.layer_scores(weight, Site("a", "weight", shape, kind, Role.MATRIX), torch.eye(columns)[None], fraction)
    assert [score.structure for score in layer.structures] == [kind.ABOUT.name for kind in STRUCTURES]
    assert [score.structure for score in layer.yardsticks] == [kind.ABOUT.name for kind in YARDSTICKS]
    for score in (*layer.structures, *layer.yardsticks):
        if score.error is None:
            assert score.note
            continue
        assert score.bytes is not None
        assert score.bytes <= 1.05 * fraction * 4 * weight.numel()
        assert math.isfinite(score.error)
        assert score.note == ""


def test_what_can_spend_any_size_spends_most_of_it() -> None:
    """An equal size is only fair to a candidate that makes use of it."""
    linear = structures.layer_scores(
        torch.randn(128, 144), Site("a", "weight", (128, 144), Kind.LINEAR, Role.MATRIX), torch.eye(144)[None], 0.3
    )
    conv = structures.layer_scores(
        torch.randn(64, 32, 3, 3), Site("a", "weight", (64, 32, 3, 3), Kind.CONV, Role.MATRIX), torch.eye(288)[None], 0.3
    )
    once = {"fastfood", "butterfly", "monarch", "cyclic-filters", "group-filters", "crop-filters", "multi-bias-filters"}
    for layer in (linear, conv):
        for score in (*layer.structures, *layer.yardsticks):
            if score.error is not None and score.structure not in once:
                assert score.bytes is not None
                assert score.bytes >= 0.8 * 0.3 * 4 * layer.parameters, score


def test_inputs_that_span_little_are_no_harm() -> None:
    weight = torch.randn(32, 48)
    (layer,) = structures.scores(model_of(weight), task_of(torch.randn(200, 2) @ torch.randn(2, 48)), 0.25)
    assert layer.best is not None
    assert layer.best.structure == "whitened-svd"
    assert layer.best.error is not None
    assert layer.best.error < 1e-6


def test_a_layer_without_outputs_has_reasons_in_place_of_errors() -> None:
    (layer,) = structures.scores(model_of(torch.randn(32, 48)), task_of(torch.zeros(20, 48)), 0.25)
    assert layer.best is None
    assert all("outputs are zero" in score.note for score in (*layer.structures, *layer.yardsticks))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 25, float("nan")])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        structures.scores(model_of(torch.randn(8, 8)), task_of(torch.randn(2, 8)), fraction)


def test_bad_data_is_named() -> None:
    weight = torch.randn(32, 48)
    with pytest.raises(DataError, match="calibration data is empty"):
        structures.scores(model_of(weight), task_of(), 0.25)
    with pytest.raises(DataError, match="loss of the first calibration batch is nan"):
        structures.scores(model_of(weight), task_of(torch.full((2, 48), float("nan"))), 0.25)
    with pytest.raises(DataError, match=r"inputs of 0\.weight are NaN or infinite"):
        structures.scores(model_of(weight), task_of(torch.randn(2, 48), torch.full((2, 48), float("inf"))), 0.25)
    with pytest.raises(DataError, match="holds 1536 NaN"):
        structures.scores(model_of(weight * math.nan), task_of(torch.randn(2, 48)), 0.25)
    with pytest.raises(DataError, match="no linear or convolutional layer"):
        structures.scores(nn.Sequential(nn.Embedding(10, 4)), task_of(torch.arange(10)), 0.25)

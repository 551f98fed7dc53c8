"""What the tests of compact blocks share: a layer with inputs of its own, and the checks that every block must pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.calibration.stats import Stats
from kogata.engines import EAGER, ONNXRUNTIME, Costs, OnnxRuntime, onnx_graph
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.lower import lower
from kogata.errors import DataError, NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Kind, Site, Task
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (16, 8, 3, 3), Kind.CONV, Role.MATRIX)


def coloured(images: int, channels: int, side: int = 7) -> Tensor:
    """Images whose channels and neighbouring places are alike, so that errors of weights and of outputs differ."""
    mixed = torch.einsum("nchw,cd->ndhw", torch.randn(images, channels, side, side), torch.randn(channels, channels) ** 3)
    return mixed + mixed.roll(1, 2) + 0.5 * mixed.roll(1, 3)


def rows_of(images: Tensor, kernel: int = 3) -> Tensor:
    """The patches ``[rows, channels · places]`` that a flattened filter multiplies, without padding, in float64."""
    return functional.unfold(images.double(), kernel).transpose(1, 2).flatten(0, 1)


def stats_of(images: Tensor, kernel: int = 3) -> Stats:
    """The gram of these patches."""
    rows_NI = rows_of(images, kernel)
    return Stats(gram_GII=(rows_NI.T @ rows_NI / len(rows_NI)).float()[None])


def output_error(form: Form, weight: Tensor, rows_NI: Tensor) -> float:
    """‖X (W − V)ᵀ‖² / ‖X Wᵀ‖², on the patches themselves."""
    wanted = rows_NI @ weight.double().flatten(1).T
    missed = wanted - rows_NI @ form.dense().detach().double().flatten(1).T
    return float(missed.square().sum() / wanted.square().sum())


def assert_refuses(method: WeightMethod, *cases: tuple[tuple[int, ...], str]) -> None:
    """Weights of these shapes are refused with these reasons; so are grouped layers, and weights that are not finite."""
    for shape, reason in cases:
        with pytest.raises(NotApplicable, match=reason):
            method.encode(torch.randn(shape), SITE, Stats())
    with pytest.raises(NotApplicable, match="grouped convolution"):
        method.encode(torch.randn(16, 8, 3, 3), SITE, Stats(gram_GII=torch.eye(72).expand(2, -1, -1)))
    for stats in (Stats(), Stats(gram_GII=torch.eye(72)[None])):
        with pytest.raises(DataError, match=r"layer\.weight of shape .* infinite"):
            method.encode(torch.full((16, 8, 3, 3), float("nan")), SITE, stats)


LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "strides differ": {"stride": (1, 2), "padding": (2, 0), "bias": False},
    "dilated": {"dilation": (2, 1), "padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
    "reflect": {"padding": (2, 0), "padding_mode": "reflect", "stride": (2, 1)},
}


def compressed(method: WeightMethod, layer: nn.Module, images: Tensor) -> nn.Module:
    """A model of this one layer after the method."""
    model = nn.Sequential(layer).eval()
    return method.apply(Job(model=model, reference=model, task=Task(calibration=[images]))).model


def assert_lowers(method: WeightMethod, settings: dict[str, Any], costs: Costs = EAGER) -> nn.Module:
    """The lowered layer computes what the dense one does, with fewer multiplications."""
    images = torch.randn(3, 8, 10, 11)
    model = compressed(method, nn.Conv2d(8, 32, 3, **settings), images)
    cheaper = lower(model, costs)
    with evaluating(model):
        assert_near(cheaper(images), surgery.plain(model)(images), 1e-5)
        assert_near(cheaper[0](images[0]), surgery.plain(model)(images)[0], 1e-5)  # type: ignore[index]
    assert multiplications(cheaper, images) < multiplications(surgery.plain(model), images)
    assert not any(parameter.requires_grad for parameter in cheaper.parameters())
    return cheaper


def multiplications(model: nn.Module, images: Tensor) -> int:
    """Of all convolutions in one forward, by hooks: each output entry reads a filter."""
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += output.numel() * layer.weight[0].numel()

    handles = [module.register_forward_hook(count) for module in model.modules() if type(module) is nn.Conv2d]
    with evaluating(model):
        model(images)
    for handle in handles:
        handle.remove()
    return total


def assert_file_and_engine(
    method: WeightMethod, folder: Path, settings: dict[str, Any], bound: int, costs: Costs = ONNXRUNTIME
) -> None:
    """The same weights bit for bit, and the same outputs in ONNX Runtime from the file's own tensors, at any batch size."""
    images = torch.randn(3, 16, 10, 11)
    model = compressed(method, nn.Conv2d(16, 32, 3, **settings), images)
    cheaper = lowered(model, images, costs)
    assert type(cheaper[0]) is not nn.Conv2d  # type: ignore[index]
    graph = onnx_graph.bind(onnx_graph.export(cheaper, images), model)
    path = folder / "m.kogata"
    write_file(path, pack(model, graph))
    found = read_file(path)
    assert len(found.graph.bindings) == bound  # type: ignore[union-attr]
    loaded = load(path, into=nn.Sequential(nn.Conv2d(16, 32, 3, **settings)))
    assert torch.equal(loaded[0].weight, model[0].weight)  # type: ignore[index]
    session = OnnxRuntime().open_file(found, loaded, images)
    with evaluating(model):
        assert_near(session(images), model(images), 1e-4)
        assert_near(session(images[:2]), model(images[:2]), 1e-4)


def assert_damage_is_refused(form: Form, changes: dict[str, Any], reason: str) -> None:
    """A header, or planes, or parts that do not fit raise ValueError and nothing else."""
    arrays = {name: plane.array for name, plane in form.planes().items()}
    with pytest.raises(ValueError, match=re.compile(reason)):
        type(form).restore(form.header() | changes, arrays, form.parts())

"""What the tests of all structured matrices share: encoding one matrix, fast layers against the dense one, damaged files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.engines import ONNXRUNTIME, onnx_graph
from kogata.engines.lowering.lower import lower
from kogata.engines.lowering.structured_layers import Added
from kogata.engines.onnxruntime import OnnxSession
from kogata.forms import Form, Role
from kogata.job import Kind, Site
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near


def encoded(method: WeightMethod, weight: Tensor) -> Form:
    """The form of a weight, of a linear layer or a convolution."""
    kind = Kind.LINEAR if weight.ndim == 2 else Kind.CONV
    return method.encode(weight, Site("layer", "weight", tuple(weight.shape), kind, Role.MATRIX), Stats())


def squared_error(form: Form, weight: Tensor) -> float:
    """‖W − W̃‖²."""
    return float((form.dense().detach().double() - weight.double()).square().sum())


def assert_projection(form: Form, weight: Tensor) -> None:
    """What is left of a weight is orthogonal to every direction in which a factor of its nearest form can move."""
    values = [leaf.values for _, leaf in form.leaves()]
    loss = (form.dense() - weight).square().sum()
    for gradient, value in zip(torch.autograd.grad(loss, values), values, strict=True):
        assert float(gradient.norm() * value.detach().norm()) <= 1e-4 * float(weight.square().sum())


def lowered(method: WeightMethod, outputs: int, inputs: int, tmp_path: Path, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """The layers in the place of a linear one, for PyTorch and for ONNX Runtime.

    Each computes in its engine what the dense layer does, the second one also from its file's own graph.
    """
    x = torch.randn(3, 2, inputs)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    job = method.apply(prepare(model, Task(calibration=[x])))
    fast, exported = lower(job.model).eval(), lower(job.model, ONNXRUNTIME).eval()
    with evaluating(job.model):
        wanted = surgery.plain(job.model)(x)
        assert_near(fast(x), wanted, 1e-5)
        assert_near(fast(x[0, 0]), wanted[0, 0], 1e-5)
        assert_near(exported(x), wanted, 1e-5)
    proto = onnx_graph.export(exported, x)
    assert_near(OnnxSession(proto)(x), wanted, 1e-5)
    graph = onnx_graph.bind(proto, job.model)
    path = tmp_path / "model.kogata"
    write_file(path, pack(job.model, graph))
    assert_near(OnnxSession(onnx_graph.fill(read_file(path)))(x), wanted, 1e-5)
    loaded = load(path, into=surgery.clone(model, share=False))
    assert torch.equal(surgery.plain(loaded)(x), wanted)
    assert path.stat().st_size < 4 * outputs * inputs
    return fast[0], exported[0]  # type: ignore[index]


def assert_is(kind: type[nn.Module], layer: nn.Module) -> None:
    """The layer, or of layers side by side the first one, is of a kind; if it is no dense layer, nothing in it is trained."""
    first = next(layer.layers.children()) if isinstance(layer, Added) else layer
    assert type(first) is kind
    assert kind is nn.Linear or not any(parameter.requires_grad for parameter in layer.parameters())


def assert_refused(form: Form, damages: list[Mapping[str, Any]]) -> None:
    """A header of a file that has been changed so is refused, whatever the change."""
    kind, parts = type(form), form.parts()
    rebuilt = kind.restore(copy.deepcopy(form.header()), {}, parts)
    assert torch.equal(rebuilt.dense(), form.dense())
    for damage in damages:
        with pytest.raises((ValueError, KeyError, TypeError)):
            kind.restore(copy.deepcopy(form.header()) | dict(damage), {}, parts)

"""Lowering for one engine or another: what decides, rules of a third party, and models that cannot do with cheaper layers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task, lower
from kogata.calibration.prepare import prepare
from kogata.coding.plane import Plane
from kogata.engines import EAGER, ONNXRUNTIME, RULES, Costs, Eager, OnnxRuntime
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.layers import kind_of
from kogata.engines.lowering.rules import cheaper
from kogata.engines.lowering.transform_layers import CosineCirculantLinear
from kogata.forms import Dense, Form, Product, Role, Sum, Tied
from kogata.forms.product import PAIR
from kogata.forms.structured_maps import Circulant
from kogata.methods import SVD, StaticActivations
from kogata.methods.base.compose import chain
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import sites_of
from kogata.testing.comparisons import assert_near

SIZE = 64


class Scaled(Form):
    """A form of a third party: the identity times one number."""

    def __init__(self, scale: Form, size: int) -> None:
        super().__init__()
        self.shape, self.scale = torch.Size((size, size)), scale

    def dense(self) -> Tensor:
        return torch.eye(self.shape[0]) * self.scale.dense()

    def planes(self) -> dict[str, Plane]:
        return {}

    def header(self) -> dict[str, Any]:
        return {"size": self.shape[0]}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        return cls(parts["scale"], header["size"])


class Times(nn.Module):
    """Its layer."""

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.bias


def times(form: Scaled, layer: nn.Module, costs: Costs) -> nn.Module | None:
    """Its rule."""
    if kind_of(layer) is not nn.Linear or not isinstance(layer, nn.Linear):
        return None
    return Times(form.scale.dense().detach(), layer.bias.detach())


def holding(form: Form) -> nn.Sequential:
    """A model of one linear layer whose weight this form holds."""
    model = nn.Sequential(nn.Linear(form.shape[1], form.shape[0]))
    surgery.attach(model, next(site for site in sites_of(model) if site.parameter == "weight"), form)
    return model.eval()


def scaled() -> Scaled:
    return Scaled(Dense(torch.randn(1), Role.SCALE), SIZE)


def test_a_form_without_a_rule_becomes_dense() -> None:
    model, x = holding(scaled()), torch.randn(3, SIZE)
    found = lower(model)
    assert type(found.get_submodule("0")) is nn.Linear
    assert_near(found(x), model(x).detach(), 1e-6)


@pytest.mark.parametrize("engine", [Eager, OnnxRuntime])
@pytest.mark.parametrize("residual", [False, True])
def test_a_third_party_brings_a_rule_for_its_form(engine: type[Eager] | type[OnnxRuntime], residual: bool) -> None:
    """Also where its form is a term of a sum, and in an engine."""
    rest = Product.of(PAIR, [torch.randn(SIZE, 2), torch.randn(2, SIZE)], (SIZE, SIZE))
    model, x = holding(Sum([scaled(), rest]) if residual else scaled()), torch.randn(3, SIZE)
    mine = engine(rules={**RULES, Scaled: times})
    found = lower(model, mine.costs, mine.rules)
    assert any(isinstance(module, Times) for module in found.modules())
    assert not any(isinstance(module, Times) for module in lower(model, mine.costs).modules())
    with evaluating(model):
        assert_near(found(x), model(x), 1e-5)
        assert_near(mine.open_model(model, x)(x), model(x), 1e-5)


def test_a_rule_may_be_of_an_index_map_and_none_may_be_left() -> None:
    form, layer = Tied(Circulant(512, 3), Dense(torch.randn(1, 1, 512), Role.MATRIX), (512, 512)), nn.Linear(512, 512)
    assert cheaper(form, layer, EAGER) is not None
    assert cheaper(form, layer, EAGER, {}) is None
    assert isinstance(cheaper(form, layer, EAGER, {Circulant: lambda *_: nn.Identity()}), nn.Identity)


def test_costs_decide_and_nothing_else() -> None:
    """Each threshold, moved across a layer, changes what becomes of it."""
    form = Tied(Circulant(64, 3), Dense(torch.randn(8, 8, 64), Role.MATRIX), (512, 512))
    layer = nn.Linear(512, 512)
    assert type(cheaper(form, layer, ONNXRUNTIME)) is CosineCirculantLinear
    for change in ({"cosines": 63}, {"shortest": 65}, {"transforms": 512 * 512 + 1}):
        assert cheaper(form, layer, dataclasses.replace(ONNXRUNTIME, **change)) is None
    assert type(cheaper(form, layer, EAGER)) is not CosineCirculantLinear


def test_layers_for_pytorch_stay_the_same_under_export() -> None:
    """The target is the caller's to say: an exporter at work changes no layer."""
    form = Tied(Circulant(512, 3), Dense(torch.randn(1, 1, 512), Role.MATRIX), (512, 512))
    model, x = lower(holding(form)).eval(), torch.randn(2, 512)
    operations = {str(node.target) for node in torch.export.export(model, (x,)).graph.nodes if node.op == "call_function"}
    assert any("fft" in name for name in operations)


@pytest.mark.parametrize("costs", [EAGER, ONNXRUNTIME], ids=["eager", "onnxruntime"])
def test_what_flows_into_a_cheaper_layer_is_still_rounded(costs: Costs) -> None:
    x = torch.randn(64, 32)
    job = chain(SVD(rank=4), StaticActivations(bits=4)).apply(prepare(nn.Sequential(nn.Linear(32, 32)), Task(calibration=[x])))
    found = lower(job.model, costs)
    assert sum(isinstance(module, nn.Linear) for module in found.modules()) == 2
    with evaluating(job.model):
        assert_near(found(x), job.model(x), 1e-5)


class Reads(nn.Module):
    """The weight of ``read`` is used past its forward; ``free`` is like any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.read = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.free(x)) @ self.read.weight


def test_only_the_layers_that_fail_stay_dense_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(4, 32)
    job = SVD(rank=4).apply(prepare(Reads(), Task(calibration=[x])))
    with caplog.at_level(logging.WARNING, logger="kogata"):
        found = lowered(job.model, x, EAGER)
    assert isinstance(found.get_submodule("free"), nn.Sequential)
    assert isinstance(found.get_submodule("read"), nn.Linear)
    assert "read stays dense" in caplog.text
    assert "free" not in caplog.text
    with evaluating(job.model):
        assert_near(found(x), job.model(x), 1e-5)


class Counts(nn.Module):
    """A forward that minds how many layers were replaced: one may be, two may not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])

    def forward(self, x: Tensor) -> Tensor:
        if sum(isinstance(layer, nn.Linear) for layer in self.layers) == 0:
            raise RuntimeError("no linear layer is left")
        return self.layers[1](self.layers[0](x))


def test_where_no_single_layer_is_to_blame_all_stay_dense(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(4, 32)
    job = SVD(rank=4).apply(prepare(Counts(), Task(calibration=[x])))
    with caplog.at_level(logging.WARNING, logger="kogata"):
        found = lowered(job.model, x, EAGER)
    assert all(isinstance(found.get_submodule(f"layers.{number}"), nn.Linear) for number in range(2))
    assert "keeps all its dense layers (layers.0, layers.1" in caplog.text
    assert "no linear layer is left" in caplog.text

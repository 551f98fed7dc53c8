"""Activation quantizers against NumPy, and what attaching them does to a model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.network.quantizers import (
    QUANTIZERS,
    Dynamic,
    Granularity,
    Quantizer,
    Sign,
    Static,
    attach_quantizer,
    layer_of,
    quantizers_of,
)
from kogata.network.sites import sites_of

MAKERS = [
    lambda: Static(torch.tensor([0.1]), bits=4, zero=3),
    lambda: Dynamic(bits=5, granularity=Granularity.TOKEN),
    lambda: Dynamic(bits=5, granularity=Granularity.TENSOR),
    Sign,
]


@pytest.mark.parametrize(("bits", "zero"), [(1, 0), (2, 1), (4, 0), (8, 128), (16, 2**15)])
def test_static_is_jacobs_equation(bits: int, zero: int) -> None:
    x = torch.randn(6, 7, dtype=torch.float64) * 5
    quantizer = Static(torch.tensor([0.07], dtype=torch.float64), bits=bits, zero=zero)
    codes = np.clip(np.rint(x.numpy() / 0.07) + zero, 0, 2**bits - 1)
    np.testing.assert_allclose(quantizer(x).detach().numpy(), 0.07 * (codes - zero), rtol=1e-12)


def test_static_gradients_are_those_of_lsq() -> None:
    x = torch.tensor([[0.3, -0.9, 5.0, -4.0]], requires_grad=True)
    quantizer = Static(torch.tensor([0.5]), bits=3, zero=4)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert quantizer.scale.grad is not None
    assert torch.equal(x.grad, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    by_hand = (1 - 0.6) + (-2 + 1.8) + 3 - 4  # ⌊x/s⌉ − x/s inside, the ends outside
    assert float(quantizer.scale.grad) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("granularity", list(Granularity))
def test_dynamic_by_numpy(granularity: Granularity) -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64) * torch.rand(3, 4, 1, dtype=torch.float64) * 9
    found = Dynamic(bits=6, granularity=granularity)(x).numpy()
    axis = None if granularity is Granularity.TENSOR else 2
    low = np.minimum(x.numpy().min(axis=axis, keepdims=True), 0)
    high = np.maximum(x.numpy().max(axis=axis, keepdims=True), 0)
    step = (high - low) / 63
    zero = np.rint(-low / step)
    wanted = step * (np.clip(np.rint(x.numpy() / step) + zero, 0, 63) - zero)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert np.all(np.abs(found - x.numpy()) <= step * 1.001)


@pytest.mark.parametrize("make", MAKERS)
def test_zeros_stay_and_nothing_becomes_nan(make: type[Quantizer]) -> None:
    quantizer = make()
    out = quantizer(torch.zeros(2, 3))
    assert bool(torch.isfinite(out).all())
    if not isinstance(quantizer, Sign):
        assert not out.any()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_shape_stay(make: type[Quantizer], dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4).to(dtype)
    out = make()(x)
    assert (out.dtype, out.shape) == (x.dtype, x.shape)


@pytest.mark.parametrize("make", MAKERS)
def test_rebuilt_from_its_header(make: type[Quantizer]) -> None:
    quantizer = make()
    assert type(quantizer) in QUANTIZERS
    twin = type(quantizer).restore(quantizer.header())
    twin.load_state_dict(quantizer.state_dict())
    x = torch.randn(4, 9)
    assert torch.equal(twin(x), quantizer(x))


@pytest.mark.parametrize(("bits", "zero"), [(0, 0), (17, 0), (4, 16), (4, -1)])
def test_settings_are_checked(bits: int, zero: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 16 bits"):
        Static(torch.ones(1), bits=bits, zero=zero)


def test_attached_it_rounds_the_input_and_gives_way_to_another() -> None:
    layer, x = nn.Linear(5, 2), torch.randn(3, 5)
    for quantizer in (Static(torch.tensor([0.5]), bits=4, zero=8), Dynamic(bits=3, granularity=Granularity.TENSOR)):
        attach_quantizer(layer, quantizer)
        wanted = nn.functional.linear(quantizer(x), layer.weight, layer.bias)
        assert torch.equal(layer(x), wanted)
        assert torch.equal(layer(input=x), wanted)
        assert torch.equal(copy.deepcopy(layer)(x), wanted)
        assert [(path, type(q)) for path, q in quantizers_of(nn.Sequential(layer))] == [("0", type(quantizer))]


def test_a_sign_stands_in_for_an_activation_that_works_in_place() -> None:
    relu, x = nn.ReLU(inplace=True), torch.randn(3, 5)
    attach_quantizer(relu, Sign())
    before = x.clone()
    assert torch.equal(relu(x), torch.where(before >= 0, 1.0, -1.0))
    assert torch.equal(x, before)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)
        self.words = nn.Embedding(3, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_layers_whose_input_a_weight_multiplies() -> None:
    model = Reader()
    found = {site.name: layer_of(model, site) for site in sites_of(model)}
    assert {name for name, layer in found.items() if layer is not None} == {"linear.weight"}
    assert found["linear.weight"] is model.linear

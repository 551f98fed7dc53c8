"""Biased weight decay: its gradient by hand, and that it pulls small weights more than large ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import UsageError
from kogata.forms import Role
from kogata.methods import MagnitudePruning, Recover
from kogata.methods.base.compose import chain
from kogata.methods.pruning.biased_weight_decay import BiasedWeightDecay
from kogata.network.sites import form_at, selected_sites

RECOVER = Recover(epochs=1)


def test_gradient_is_the_closed_form() -> None:
    """∂/∂w λ|w| / (1 + |w|) = λ sign w / (1 + |w|)², and 0 at 0; biases feel nothing."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 3.0]]))
    net = BiasedWeightDecay(strength=0.8, recover=RECOVER).begin(layer)
    penalty = net.penalty()
    assert float(penalty.detach()) == pytest.approx(0.8 * (0.5 + 0.5 + 0 + 0.75))
    penalty.backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert found["model.bias"] is None
    slopes = found["model.weight"]
    assert slopes is not None
    assert slopes.flatten().tolist() == pytest.approx([0.8 / 4, -0.8 / 4, 0, 0.8 / 16])


def test_finite_differences() -> None:
    layer = nn.Linear(4, 3, bias=False).double()
    net = BiasedWeightDecay(strength=0.1, recover=RECOVER).begin(layer)
    weight = net.get_parameter("model.weight")
    net.penalty().backward()
    assert weight.grad is not None
    for i in range(weight.numel()):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[i] += sign * 1e-6
                values.append(float(net.penalty()))
                weight.view(-1)[i] -= sign * 1e-6
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(weight.grad.view(-1)[i]), rel=1e-4)


def task(outputs: int) -> Task:
    torch.manual_seed(1)
    inputs = torch.randn(128, 16)
    batches = list(zip(inputs.split(16), torch.randint(outputs, (128,)).split(16), strict=True))
    return Task(calibration=[inputs], train=batches, loss=functional.cross_entropy)


def test_more_weights_end_near_zero() -> None:
    torch.manual_seed(0)
    job = prepare(nn.Linear(16, 4), task(4))
    small = list[int]()
    for strength in (1e-9, 1e-1):
        method = BiasedWeightDecay(strength=strength, recover=Recover(epochs=10, learning_rate=1e-2, distill=0.0))
        found = method.apply(job)
        (site,) = selected_sites(found)
        assert [leaf.role for _, leaf in form_at(found.model, site).leaves()] == [Role.MATRIX]
        small.append(int((form_at(found.model, site).dense().abs() < 0.02).sum()))
    assert small[1] > 3 * max(small[0], 1)


def test_kept_values_decay_under_their_mask() -> None:
    job = prepare(nn.Linear(16, 4), task(4))
    steps = chain(MagnitudePruning(sparsity=0.5), BiasedWeightDecay(strength=1e-3, recover=RECOVER))
    found = steps.apply(job)
    form = form_at(found.model, selected_sites(found)[0])
    assert form.describe() == "masked"
    assert int((form.dense() != 0).sum()) == 32


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        BiasedWeightDecay(strength=strength, recover=RECOVER)

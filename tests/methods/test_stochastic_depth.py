"""Branches come and go as often as they should, and the plain net in the end gives what the wrapper gives in use."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.methods.base.compose import chain
from kogata.methods.distillation.shallower import Shallower
from kogata.methods.distillation.stochastic_depth import StochasticDepth
from kogata.methods.recover import Recover
from kogata.tasks.networks import cifar_resnet

BRIEF = Recover(epochs=1, learning_rate=1e-3)


def net_and_batch() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    net = cifar_resnet(8, width=0.25)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval(), torch.randn(4, 3, 32, 32)


@torch.no_grad()
def test_in_use_every_branch_counts_as_often_as_it_was_there() -> None:
    net, x = net_and_batch()
    wrapper = StochasticDepth(branches="*.branch", recover=BRIEF, survival=0.4).begin(net).eval()
    h = net[:3](x)
    for number in range(1, 4):
        branch, shortcut = (net.get_submodule(f"{number + 2}.{name}") for name in ("branch", "shortcut"))
        h = functional.relu((1 - number / 3 * 0.6) * branch(h) + shortcut(h))
    wanted = net[6:](h)
    assert torch.allclose(wrapper(x), wanted, atol=1e-5)
    assert torch.allclose(wrapper.finish().eval()(x), wanted, atol=1e-5)
    assert [type(m) for m in wrapper.model.modules()] == [type(m) for m in net.modules()]


@torch.no_grad()
def test_in_training_a_branch_is_there_or_not() -> None:
    net, x = net_and_batch()
    method = StochasticDepth(branches="3.branch", recover=BRIEF, survival=0.3)
    wrapper = method.begin(net)
    wrapper.eval()
    wrapper.model.get_submodule("3.branch").training = True  # of all layers only the choice itself
    with_, without = net(x), net[6:](net[5](net[4](functional.relu(net[:3](x)))))
    counts = [0, 0]
    for _ in range(300):
        found = wrapper(x)
        counts[int(torch.allclose(found, with_, atol=1e-5))] += 1
        assert torch.allclose(found, with_, atol=1e-5) or torch.allclose(found, without, atol=1e-5)
    assert counts[1] / 300 == pytest.approx(0.3, abs=0.08)


def test_as_a_step_and_then_cut() -> None:
    net, x = net_and_batch()
    task = Task(calibration=[x], train=[(x, torch.tensor([0, 1, 2, 3]))], loss=functional.cross_entropy)
    net = nn.Sequential(*list(net)[:4], list(cifar_resnet(14, width=0.25))[4], *list(net)[4:]).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    method = StochasticDepth(branches="*.branch", recover=BRIEF)
    job = chain(method, Shallower(keep=1)).apply(prepare(net, task))
    assert len(list(job.model.children())) == len(net) - 1
    assert len(job.ledger) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    again = chain(method, Shallower(keep=1)).apply(prepare(net, task))
    for a, b in zip(job.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refusals() -> None:
    net, _ = net_and_batch()
    with pytest.raises(NotApplicable, match="no module of this model matches 'nothing'"):
        StochasticDepth(branches="nothing", recover=BRIEF).begin(net)
    with pytest.raises(NotApplicable, match="3 ends in Residual"):
        StochasticDepth(branches="3", recover=BRIEF).begin(net)
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    tied[1].weight = tied[0].weight
    with pytest.raises(NotApplicable, match=r"1 ends in Linear; .* not tied"):
        StochasticDepth(branches="1", recover=BRIEF).begin(tied)
    with pytest.raises(UsageError, match="survival is 0"):
        StochasticDepth(branches="*.branch", recover=BRIEF, survival=0.0)

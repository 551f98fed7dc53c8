"""Wider and deeper nets compute what they did, and can be trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable, UsageError
from kogata.nn import net2net
from kogata.tasks.networks import cifar_resnet, lenet5


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def images(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(shape)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(shape) * 2 + 1)  # running statistics of their own
    model.eval()
    return x


@pytest.mark.parametrize(("layer", "width"), [("conv1", 31), ("conv2", 70), ("fc1", 900)])
@torch.no_grad()
def test_wider_lenet(layer: str, width: int) -> None:
    torch.manual_seed(0)
    net = lenet5()
    x = images(net, (4, 1, 28, 28))
    wide = net2net.wider(net, layer, width, x)
    assert wide.get_submodule(layer).get_parameter("weight").shape[0] == width
    assert relative(wide(x), net(x)) < 1e-5
    other = torch.randn(3, 1, 28, 28)
    assert relative(wide(other), net(other)) < 1e-5


@torch.no_grad()
def test_wider_residual_net_with_batch_normalization() -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8, width=0.5)
    x = images(net, (4, 3, 32, 32))
    inner = net2net.wider(net, "3.branch.0", 13, x)
    assert relative(inner(x), net(x)) < 1e-5
    joint = net2net.wider(net, "0", 11, x)  # the stream: what is added to it widens too
    assert joint.get_submodule("3.branch.3").get_parameter("weight").shape[0] == 11
    assert relative(joint(x), net(x)) < 1e-5


@torch.no_grad()
def test_twins_share_what_their_source_gave() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    wide = net2net.wider(net, "0", 10, torch.randn(5, 4), seed=3)
    rows, columns = wide.get_submodule("0").get_parameter("weight"), wide.get_submodule("2").get_parameter("weight")
    for channel in range(3):
        twins = (rows == net[0].get_parameter("weight")[channel]).all(1)
        assert torch.allclose(columns[:, twins].sum(1), net[2].get_parameter("weight")[:, channel], atol=1e-6)
    noisy = net2net.wider(net, "0", 10, torch.randn(5, 4), noise=0.1, seed=3).get_submodule("0").get_parameter("weight")
    assert torch.equal(noisy[:3], rows[:3])
    assert 0.02 < float((noisy[3:] - rows[3:]).std() / rows[3:].std()) < 0.3
    assert len(torch.unique(noisy, dim=0)) == 10


@pytest.mark.parametrize("normalized", [False, True])
@torch.no_grad()
def test_deeper_convolution(normalized: bool) -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8, width=0.5)
    x = images(net, (4, 3, 32, 32))
    deep = net2net.deeper(net, "3.branch.2", x, normalized=normalized)
    assert sum(isinstance(m, nn.Conv2d) for m in deep.modules()) == 1 + sum(isinstance(m, nn.Conv2d) for m in net.modules())
    assert relative(deep(x), net(x)) < 1e-5
    other = torch.randn(3, 3, 32, 32)
    assert relative(deep(other), net(other)) < 1e-5


def test_deeper_linear_and_then_wider_and_trainable() -> None:
    torch.manual_seed(0)
    net = lenet5()
    x = images(net, (4, 1, 28, 28))
    grown = net2net.wider(net2net.deeper(net, "relu3", x), "relu3.1", 600, x)
    with torch.no_grad():
        assert relative(grown(x), net(x)) < 1e-5
    grown(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in grown.parameters())
    noisy = net2net.deeper(net, "relu3", x, noise=0.1).get_submodule("relu3.1").get_parameter("weight")
    assert 0 < float((noisy.detach() - torch.eye(500)).norm()) < 0.2 * float(torch.eye(500).norm()) * 500**0.5


def test_refusals() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    with pytest.raises(NotApplicable, match="only behind a ReLU"):
        net2net.deeper(net, "1", x)
    with pytest.raises(NotApplicable, match="'2' cannot be wider"):
        net2net.wider(net, "2", 5, x)
    with pytest.raises(UsageError, match="has 3 channels already"):
        net2net.wider(net, "0", 3, x)

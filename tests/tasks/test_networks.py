"""The reference networks: parameters as published, one forward pass, and what methods rely on."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kogata.tasks import networks
from kogata.tasks.builtin import BUILTIN_TASKS
from kogata.tasks.networks.resnet import Residual

Make = Callable[..., nn.Sequential]

IMAGENET: list[tuple[Make, int, int, int | None]] = [  # parameters, pixels, multiply-adds where they are published
    (networks.alexnet, 61_100_840, 224, 714_188_480),
    (networks.caffenet, 60_965_224, 227, 724_406_816),
    (networks.vgg16, 138_357_544, 224, 15_470_264_320),
    (networks.googlenet, 6_998_552, 224, 1_582_671_872),
    (networks.resnet18, 11_689_512, 224, 1_814_073_344),
    (networks.resnet50, 25_557_032, 224, 4_089_184_256),
    (networks.nin, 7_595_176, 224, None),
    (networks.allcnn, 9_372_840, 224, None),
]
CIFAR: list[tuple[Make, int]] = [
    (networks.cifar_vgg, 14_724_042),
    (networks.cifar_vgg_small, 288_746),
    (partial(networks.cifar_resnet, 20), 272_474),
    (partial(networks.cifar_resnet, 56), 855_770),
    (partial(networks.cifar_resnet, 20, width=0.5), 68_786),
    (networks.cifar_nin, 966_986),
    (networks.cifar_allcnn, 1_369_738),
]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, images_NCHW: Tensor) -> int:
    """Those of convolutions and linear layers in one pass."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            counts.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        layer.register_forward_hook(count)
    network(images_NCHW)
    return sum(counts)


@pytest.mark.parametrize(("make", "expected", "pixels", "operations"), IMAGENET)
def test_imagenet(make: Make, expected: int, pixels: int, operations: int | None):
    with torch.device("meta"):
        network = make().eval()
        images_NCHW = torch.empty(1, 3, pixels, pixels)
    assert parameters(network) == expected
    assert network(images_NCHW).shape == (1, 1000)
    assert operations is None or multiply_adds(network, images_NCHW) == operations


@pytest.mark.parametrize(("make", "expected"), CIFAR)
def test_cifar(make: Make, expected: int):
    network = make().eval()
    assert parameters(network) == expected
    scores = network(torch.randn(2, 3, 32, 32))
    assert scores.shape == (2, 10)
    assert torch.isfinite(scores).all()
    assert not torch.equal(scores[0], scores[1])


class Rectifications(TorchDispatchMode):
    """Counts the ReLUs that run, wherever they are called."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.relu.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [entry[0] for entry in (*IMAGENET, *CIFAR)])
def test_every_activation_is_a_module_of_its_own(make: Make):
    ran: Counter[nn.Module] = Counter()
    with torch.device("meta"):
        network = make().eval()
        images_NCHW = torch.empty(1, 3, 227, 227)
    leaves = [module for module in network.modules() if not list(module.children())]
    for leaf in leaves:
        leaf.register_forward_hook(lambda leaf, _, __: ran.update([leaf]))
    with Rectifications() as rectifications:
        network(images_NCHW)
    assert ran == Counter(leaves), "every layer runs once"
    assert rectifications.count == sum(isinstance(leaf, nn.ReLU) for leaf in leaves) > 0


@pytest.mark.parametrize("make", [networks.cifar_vgg, networks.cifar_vgg_small])
def test_a_sign_in_place_of_a_relu_binarizes_the_next_convolution(make: Make):
    class Sign(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.where(inputs < 0, -1.0, 1.0)

    network = make().eval()
    seen: list[bool] = []
    for name, module in list(network.named_children()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, Sign())
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, __: seen.append(bool((inputs[0].abs() == 1).all())))
    network(torch.randn(2, 3, 32, 32))
    assert seen[0] is False
    assert all(seen[1:])


@pytest.mark.parametrize("make", [networks.cifar_vgg, networks.cifar_vgg_small, partial(networks.cifar_resnet, 20)])
def test_width_scales_every_layer(make: Make):
    full, half = ([layer for layer in make(width=width).modules() if isinstance(layer, nn.Conv2d)] for width in (1.0, 0.5))
    assert [layer.out_channels for layer in full] == [2 * layer.out_channels for layer in half]
    assert [layer.in_channels for layer in full[1:]] == [2 * layer.in_channels for layer in half[1:]]
    assert make(width=0.001)(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_residual_adds_its_shortcut():
    torch.manual_seed(0)
    branch = nn.Conv2d(2, 2, 1)
    block = Residual(branch, nn.Identity())
    images_NCHW = torch.randn(3, 2, 4, 4)
    expected = (nn.functional.conv2d(images_NCHW, branch.weight, branch.bias) + images_NCHW).clamp(min=0)
    torch.testing.assert_close(block(images_NCHW), expected)


def test_descriptions_tell_the_parameters():
    for task in BUILTIN_TASKS:
        assert f"{parameters(task.network()):,} parameters" in task.description

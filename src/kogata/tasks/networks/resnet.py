"""Residual networks: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", arXiv:1512.03385.

``ReLU(F(x) + x)``, where F is two 3×3 convolutions, or, in the deep ones, a bottleneck 1×1, 3×3, 1×1. Where the shape
changes, x goes through a 1×1 convolution (the paper's option B). The paper's CIFAR networks pad with zeros instead (option A);
that saves 1 % of the parameters, but is not a layer that a method could find.
"""

from torch import Tensor, nn


class Residual(nn.Module):
    """``ReLU(branch(x) + shortcut(x))`` of images ``[N, C, H, W]``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.relu = branch, shortcut, nn.ReLU()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the block's feature maps; with a stride of 2, at half the height and width."""
        return self.relu(self.branch(images_NCHW) + self.shortcut(images_NCHW))


def resnet18(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-18: images ``[N, 3, 224, 224]`` to class scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in resnet18().parameters())
    11689512
    """
    blocks: list[nn.Module] = []
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for number in range(2):
            blocks.append(_basic(channels, width, stride=2 if stage and not number else 1))
            channels = width
    return nn.Sequential(*_stem(), *blocks, *_head(channels, classes))


def resnet50(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-50, its strides in the 3×3 convolutions: images ``[N, 3, 224, 224]`` to scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in resnet50().parameters())
    25557032
    """
    blocks: list[nn.Module] = []
    channels = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for number in range(count):
            blocks.append(_bottleneck(channels, width, stride=2 if stage and not number else 1))
            channels = 4 * width
    return nn.Sequential(*_stem(), *blocks, *_head(channels, classes))


def cifar_resnet(depth: int, width: float = 1.0, classes: int = 10) -> nn.Sequential:
    """Return a ResNet for images ``[N, 3, 32, 32]``, to class scores ``[N, classes]``.

    >>> sum(parameter.numel() for parameter in cifar_resnet(20).parameters())
    272474
    >>> sum(parameter.numel() for parameter in cifar_resnet(56).parameters())
    855770

    :param depth: number of layers with weights, 6 n + 2 for three stages of n blocks, the first convolution and the classifier.
    :param width: factor on the channels of the stages, which are 16, 32 and 64 in the paper.
    """
    widths = [max(1, round(full * width)) for full in (16, 32, 64)]
    blocks: list[nn.Module] = []
    channels = widths[0]
    for stage, wanted in enumerate(widths):
        for number in range((depth - 2) // 6):
            blocks.append(_basic(channels, wanted, stride=2 if stage and not number else 1))
            channels = wanted
    stem = (*_normalized(3, widths[0], 3), nn.ReLU())
    return nn.Sequential(*stem, *blocks, *_head(channels, classes))


def _normalized(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution with padding that keeps the image size at stride 1, and its batch normalization."""
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


def _basic(channels: int, width: int, stride: int) -> Residual:
    first = (*_normalized(channels, width, 3, stride), nn.ReLU())
    return Residual(nn.Sequential(*first, *_normalized(width, width, 3)), _shortcut(channels, width, stride))


def _bottleneck(channels: int, width: int, stride: int) -> Residual:
    reduced = (*_normalized(channels, width, 1), nn.ReLU(), *_normalized(width, width, 3, stride), nn.ReLU())
    branch = nn.Sequential(*reduced, *_normalized(width, 4 * width, 1))
    return Residual(branch, _shortcut(channels, 4 * width, stride))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if channels == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(*_normalized(channels, width, 1, stride))


def _stem() -> tuple[nn.Module, ...]:
    return (*_normalized(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def _head(channels: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)

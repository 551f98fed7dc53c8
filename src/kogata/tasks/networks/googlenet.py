"""GoogLeNet: C. Szegedy et al., "Going deeper with convolutions", arXiv:1409.4842, table 1, without the two auxiliary
classifiers, which are used in training only, and without local response normalization.
"""

import torch
from torch import Tensor, nn

# Output channels in each module: 1×1, 3×3 reduction, 3×3, 5×5 reduction, 5×5, projection after the pooling.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches on the same images ``[N, C, H, W]``, their channels concatenated."""

    def __init__(self, branches: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return images of the same height and width."""
        return torch.cat([branch(images_NCHW) for branch in self.branches], 1)


def googlenet(classes: int = 1000) -> nn.Sequential:
    """Return GoogLeNet: images ``[N, 3, 224, 224]`` to class scores ``[N, classes]``.

    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in googlenet().parameters())
    6998552
    """
    layers = [
        *_convolution(3, 64, 7, stride=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        *_convolution(64, 64, 1),
        *_convolution(64, 192, 3),
    ]
    channels = 192
    for stage in STAGES:
        layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
        for widths in stage:
            layers.append(_inception(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(channels, classes))
    return nn.Sequential(*layers, *head)


def _inception(channels: int, widths: tuple[int, int, int, int, int, int]) -> Inception:
    one, reduced3, three, reduced5, five, pooled = widths
    return Inception(
        (
            nn.Sequential(*_convolution(channels, one, 1)),
            nn.Sequential(*_convolution(channels, reduced3, 1), *_convolution(reduced3, three, 3)),
            nn.Sequential(*_convolution(channels, reduced5, 1), *_convolution(reduced5, five, 5)),
            nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_convolution(channels, pooled, 1)),
        )
    )


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.ReLU()

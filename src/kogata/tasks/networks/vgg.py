"""VGG-16: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
arXiv:1409.1556, configuration D; and variants for 32×32 images.

The variants have batch normalization (S. Ioffe, C. Szegedy, arXiv:1502.03167) and no hidden fully connected layers. A block is
convolution, pooling, normalization, ReLU. The ReLU comes last, so that a sign function in its place binarizes the inputs of the
next convolution. The pooling comes before it, because the maximum of several signs is nearly always 1 (M. Rastegari et al.,
"XNOR-Net", arXiv:1603.05279, section 3.2).
"""

from torch import nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(classes: int = 1000) -> nn.Sequential:
    """Return VGG-16: images ``[N, 3, 224, 224]`` to class scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in vgg16().parameters())
    138357544
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in STAGES:
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(49 * channels, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout())
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, classes))


def cifar_vgg(width: float = 1.0, classes: int = 10) -> nn.Sequential:
    """Return VGG-16's convolutions for images ``[N, 3, 32, 32]``, and one linear layer to scores ``[N, classes]``.

    >>> sum(parameter.numel() for parameter in cifar_vgg().parameters())
    14724042

    :param width: factor on the number of channels of every layer.
    """
    return _normalized(STAGES, width, classes)


def cifar_vgg_small(width: float = 1.0, classes: int = 10) -> nn.Sequential:
    """Return six convolutions, pooled early: images ``[N, 3, 32, 32]`` to class scores ``[N, classes]``.

    >>> sum(parameter.numel() for parameter in cifar_vgg_small().parameters())
    288746

    :param width: factor on the number of channels of every layer.
    """
    return _normalized(((32,), (32, 64), (64, 128), (128,)), width, classes)


def _normalized(stages: tuple[tuple[int, ...], ...], width: float, classes: int) -> nn.Sequential:
    """Stages of convolutions, each but the last with a pooling at its end, then global average pooling and a classifier."""
    layers: list[nn.Module] = []
    channels = 3
    for number, stage in enumerate(stages, 1):
        for position, full in enumerate(stage, 1):
            wanted = max(1, round(full * width))
            layers.append(nn.Conv2d(channels, wanted, 3, padding=1, bias=False))
            if position == len(stage) and number < len(stages):
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(wanted), nn.ReLU()]
            channels = wanted
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

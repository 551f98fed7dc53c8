"""Network in Network: M. Lin, Q. Chen, S. Yan, arXiv:1312.4400, with the layer sizes of the authors' Caffe models.

Each convolution is followed by two 1×1 convolutions, a small perceptron at every position. The class scores are averages of the
last feature maps, so there is no fully connected layer.
"""

from torch import nn


def nin(classes: int = 1000) -> nn.Sequential:
    """Return the network for ImageNet: images ``[N, 3, 224, 224]`` to class scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in nin().parameters())
    7595176
    """
    return nn.Sequential(
        *_perceptron(nn.Conv2d(3, 96, 11, stride=4), 96, 96),
        nn.MaxPool2d(3, stride=2),
        *_perceptron(nn.Conv2d(96, 256, 5, padding=2), 256, 256),
        nn.MaxPool2d(3, stride=2),
        *_perceptron(nn.Conv2d(256, 384, 3, padding=1), 384, 384),
        nn.MaxPool2d(3, stride=2),
        nn.Dropout(),
        *_perceptron(nn.Conv2d(384, 1024, 3, padding=1), 1024, classes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def cifar_nin(classes: int = 10) -> nn.Sequential:
    """Return the network for CIFAR: images ``[N, 3, 32, 32]`` to class scores ``[N, classes]``.

    >>> sum(parameter.numel() for parameter in cifar_nin().parameters())
    966986
    """
    return nn.Sequential(
        *_perceptron(nn.Conv2d(3, 192, 5, padding=2), 160, 96),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(),
        *_perceptron(nn.Conv2d(96, 192, 5, padding=2), 192, 192),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Dropout(),
        *_perceptron(nn.Conv2d(192, 192, 3, padding=1), 192, classes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _perceptron(convolution: nn.Conv2d, hidden: int, output: int) -> tuple[nn.Module, ...]:
    first, second = nn.Conv2d(convolution.out_channels, hidden, 1), nn.Conv2d(hidden, output, 1)
    return convolution, nn.ReLU(), first, nn.ReLU(), second, nn.ReLU()

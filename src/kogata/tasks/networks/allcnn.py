"""All-CNN: J. T. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for simplicity: the all convolutional net",
arXiv:1412.6806. Convolutions with a stride of 2 take the place of the poolings.
"""

from torch import nn


def allcnn(classes: int = 1000) -> nn.Sequential:
    """Return All-CNN-B for ImageNet (the paper's table 6): images ``[N, 3, 224, 224]`` to scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in allcnn().parameters())
    9372840
    """
    return nn.Sequential(
        *_relu(nn.Conv2d(3, 96, 11, stride=4)),
        *_relu(nn.Conv2d(96, 96, 1)),
        *_relu(nn.Conv2d(96, 96, 3, stride=2)),
        *_relu(nn.Conv2d(96, 256, 5, padding=2)),
        *_relu(nn.Conv2d(256, 256, 1)),
        *_relu(nn.Conv2d(256, 256, 3, stride=2)),
        *_relu(nn.Conv2d(256, 384, 3, padding=1)),
        *_relu(nn.Conv2d(384, 384, 1)),
        *_relu(nn.Conv2d(384, 384, 3, stride=2)),
        nn.Dropout(),
        *_relu(nn.Conv2d(384, 1024, 3, padding=1)),
        *_relu(nn.Conv2d(1024, 1024, 1)),
        *_relu(nn.Conv2d(1024, classes, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def cifar_allcnn(classes: int = 10) -> nn.Sequential:
    """Return All-CNN-C (tables 1 and 2): images ``[N, 3, 32, 32]`` to class scores ``[N, classes]``.

    >>> sum(parameter.numel() for parameter in cifar_allcnn().parameters())
    1369738
    """
    return nn.Sequential(
        nn.Dropout(0.2),
        *_relu(nn.Conv2d(3, 96, 3, padding=1)),
        *_relu(nn.Conv2d(96, 96, 3, padding=1)),
        *_relu(nn.Conv2d(96, 96, 3, stride=2, padding=1)),
        nn.Dropout(),
        *_relu(nn.Conv2d(96, 192, 3, padding=1)),
        *_relu(nn.Conv2d(192, 192, 3, padding=1)),
        *_relu(nn.Conv2d(192, 192, 3, stride=2, padding=1)),
        nn.Dropout(),
        *_relu(nn.Conv2d(192, 192, 3, padding=1)),
        *_relu(nn.Conv2d(192, 192, 1)),
        *_relu(nn.Conv2d(192, classes, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _relu(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    return convolution, nn.ReLU()

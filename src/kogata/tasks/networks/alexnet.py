"""AlexNet on one device: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
arXiv:1404.5997; the network of A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional
neural networks" (2012) without its split in two, its grouped convolutions and its response normalization.
"""

from torch import nn


def alexnet(classes: int = 1000) -> nn.Sequential:
    """Return AlexNet: images ``[N, 3, 224, 224]`` to class scores ``[N, classes]``.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in alexnet().parameters())
    61100840
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(36 * 256, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, classes),
    )


def caffenet(classes: int = 1000) -> nn.Sequential:
    """Return AlexNet with the grouped convolutions of 2012: images ``[N, 3, 227, 227]`` to class scores ``[N, classes]``.

    Local response normalization has no parameters and, as in the Caffe version, follows the pooling.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(parameter.numel() for parameter in caffenet().parameters())
    60965224
    """
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.LocalResponseNorm(5),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.LocalResponseNorm(5),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(36 * 256, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, classes),
    )

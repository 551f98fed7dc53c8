"""The small networks of the built-in tasks, with random weights.

LeNet-300-100 and LeNet-5 after Y. LeCun et al., "Gradient-based learning applied to document recognition" (1998), with
ReLU and the 20-50-500 layers of the Caffe version, as in the tables of S. Han et al., "Deep compression",
arXiv:1510.00149.
"""

from collections import OrderedDict

from torch import nn


def lenet300() -> nn.Sequential:
    """Return LeNet-300-100: images ``[N, 1, 28, 28]`` to class scores ``[N, 10]``.

    >>> sum(parameter.numel() for parameter in lenet300().parameters())
    266610
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def lenet5() -> nn.Sequential:
    """Return LeNet-5: images ``[N, 1, 28, 28]`` to class scores ``[N, 10]``.

    >>> sum(parameter.numel() for parameter in lenet5().parameters())
    431080
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),  # before the ReLU: the same function, at a quarter of its cost
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def digits_mlp() -> nn.Sequential:
    """Return a small perceptron: 8×8 images as ``[N, 64]`` to class scores ``[N, 10]``.

    >>> sum(parameter.numel() for parameter in digits_mlp().parameters())
    9610
    """
    return nn.Sequential(OrderedDict(fc1=nn.Linear(64, 128), relu1=nn.ReLU(), fc2=nn.Linear(128, 10)))

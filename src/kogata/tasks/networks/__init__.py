"""Reference networks with random weights: those of the built-in tasks, and the usual baselines of published tables.

Every activation and pooling is a module of its own, so that a method can find, count and replace each of them.
"""

from kogata.tasks.networks.alexnet import alexnet, caffenet
from kogata.tasks.networks.allcnn import allcnn, cifar_allcnn
from kogata.tasks.networks.googlenet import googlenet
from kogata.tasks.networks.lenet import digits_mlp, lenet5, lenet300
from kogata.tasks.networks.nin import cifar_nin, nin
from kogata.tasks.networks.resnet import cifar_resnet, resnet18, resnet50
from kogata.tasks.networks.vgg import cifar_vgg, cifar_vgg_small, vgg16

__all__ = [
    "alexnet",
    "allcnn",
    "caffenet",
    "cifar_allcnn",
    "cifar_nin",
    "cifar_resnet",
    "cifar_vgg",
    "cifar_vgg_small",
    "digits_mlp",
    "googlenet",
    "lenet5",
    "lenet300",
    "nin",
    "resnet18",
    "resnet50",
    "vgg16",
]

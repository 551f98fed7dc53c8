"""BinaryNet: signs for weights and for activations.

Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks: Training Neural Networks with Weights and Activations
Constrained to +1 or −1", 2016 (1602.02830), sections 1.1 to 1.3: w_b = sign(w), a_b = sign(a), and for both the gradient passes
as if the sign were hard tanh,
    ∂C/∂a = ∂C/∂a_b · 1[|a| ≤ 1];
real weights w are kept in [−1, 1] after every step. The weights are those of BinaryConnect: signs times a constant of the
layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from kogata.forms import Role
from kogata.job import Kind, Site
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.quantization.binary_connect import Signs
from kogata.methods.quantization.sign_activations import binarize, unreadable
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class BinaryNet(TrainingMethod):
    """Binary weights and binary inputs, in layers that a normalization follows. Leave the first and the last layer out.

    A layer before which there is no activation module is left alone.

    >>> from torch import nn
    >>> from kogata.methods import BinaryNet, Recover
    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    >>> net = BinaryNet(recover=Recover(epochs=5)).begin(model)
    >>> net.finish()[1].parametrizations.weight[0].describe()
    'binary'
    """

    recover: Recover

    ABOUT = About(
        name="binary-net",
        family="quantization",
        summary="train the signs of weights, and signs as inputs",
        paper="Courbariaux et al. 2016, arXiv 1602.02830",
        layers=(Kind.LINEAR, Kind.CONV),
        training=True,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.SCALE}),
    )

    def unfit(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[Site, str]:
        """The sites before which there is no activation module."""
        return unreadable(model, sites)

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """Signs in the place of the activations before the targets, and of the targets' weights."""
        binarize(model, targets)
        return LatentWrapper(model, [(target, Signs(target.leaf, stochastic=False)) for target in targets])

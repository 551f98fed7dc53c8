"""BinaryNet: binary weights and binary activations.

Courbariaux, Hubara, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks: Training Neural Networks with Weights and Activations
Constrained to +1 or −1", 2016 (1602.02830), sections 1.1 to 1.3: w_b = sign(w), a_b = sign(a), with the straight-through
gradient of a hard tanh for both,
    ∂C/∂a = ∂C/∂a_b · 1[|a| ≤ 1].
The real weights w are clipped to [−1, 1] after every step. Weights are those of BinaryConnect: signs times a constant for each
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
    """Train binary weights and binary inputs, for layers that are followed by a normalization.

    Exclude the first and the last layer. Layers that do not read the output of an activation module, such as ``nn.ReLU``, stay
    as they are, and so do those that read a pooling of it: put the pooling before the normalization and the activation, as the
    paper does. Raises DataError without training data.

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
        summary="train binary weights and binary inputs",
        paper="Courbariaux et al. 2016, arXiv 1602.02830",
        layers=(Kind.LINEAR, Kind.CONV),
        training=True,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.SCALE}),
    )

    def unfit(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[Site, str]:
        """The sites whose layers do not read the output of an activation module."""
        return unreadable(model, sites)

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with sign functions in place of the activations before the targets, and with binarized targets."""
        binarize(model, targets)
        return LatentWrapper(model, [(target, Signs(target.leaf, stochastic=False)) for target in targets])

"""XNOR-Net: binary weights with a scale for each filter, and binary inputs.

Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016
(1603.05279), equations 2 to 6 and section 3.1:
    W ≈ α B,  B = sign(W),  α = ‖W‖₁ / n:  the minimum of ‖W − αB‖² for each filter of n weights,
    ∂C/∂W_i = ∂C/∂W̃_i (1/n + α 1[|W_i| ≤ 1]).
A dot product of signs is an XNOR and a bit count. The blocks of the paper are normalization, sign, convolution, pooling. In a
model with blocks that end in normalization and ReLU, the sign replaces the ReLU. The scale K of the inputs is left out, because
the authors found that it matters little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from kogata.forms import Binary, Form, Latent, Role
from kogata.forms.affine import as_rows
from kogata.forms.latent import narrowed, straight_through
from kogata.job import Kind, Site
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.quantization.sign_activations import binarize, unreadable
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class XNORNet(TrainingMethod):
    """Train binary weights, with a scale for each filter, and binary inputs.

    Exclude the first and the last layer, as the paper does. Layers that do not read the output of an activation module, such as
    ``nn.ReLU``, stay as they are, and so do those that read a pooling of it: put the pooling before the normalization and the
    activation, as the paper does. Raises DataError without training data.

    >>> from torch import nn
    >>> from kogata.methods import Recover, XNORNet
    >>> model = nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    >>> net = XNORNet(recover=Recover(epochs=5)).begin(model)
    >>> net.finish()[2].parametrizations.weight[0].describe()
    'binary'
    """

    recover: Recover

    ABOUT = About(
        name="xnor-net",
        family="quantization",
        summary="train binary weights, with a scale for each filter, and binary inputs",
        paper="Rastegari et al. 2016, arXiv 1603.05279",
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
        return LatentWrapper(model, [(target, _Scaled(target.leaf)) for target in targets])


class _Scaled(Latent):
    """α sign(w) for each row."""

    def dense(self) -> Tensor:
        """α sign(w), with the gradient of the paper."""
        rows_OI = as_rows(self.values.dense())
        latent_OI = rows_OI.detach()
        scale_O1 = self._scale()
        slope_OI = 1 / rows_OI.shape[1] + scale_O1 * (latent_OI.abs() <= 1)
        signs_OI = (latent_OI >= 0).to(latent_OI.dtype) * 2 - 1
        return straight_through(signs_OI * scale_O1, rows_OI * slope_OI).reshape(self.shape)

    def freeze(self) -> Form:
        """Signs and scales."""
        return Binary.of(self.values.values.detach(), self._scale())

    def _scale(self) -> Tensor:
        return narrowed(as_rows(self.values.values.detach()).abs().mean(1, keepdim=True))

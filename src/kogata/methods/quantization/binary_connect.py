"""BinaryConnect: the weights of a layer take two values, given by the signs of trained real-valued weights.

Courbariaux, Bengio, David, "BinaryConnect: Training Deep Neural Networks with binary weights during propagations", NeurIPS
2015 (1511.00363), sections 2.2 to 2.4, for real weights w kept in [−1, 1] after every step:
    deterministic  w_b = +1 if w ≥ 0, else −1
    stochastic     w_b = +1 with probability σ(w) = clip((w + 1) / 2, 0, 1), else −1,  while training; else the sign.
Gradients with respect to w_b update w. The signs of a layer are multiplied by one constant H. The paper starts from random
weights, and its code sets H to the scale of Glorot's initialization. Here training starts from a trained layer, so H is the
mean of |w|, the least-squares scale of its signs, and the real weights are in units of H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from kogata.forms import Binary, Dense, Form, Latent, Role
from kogata.forms.latent import narrowed, straight_through
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class BinaryConnect(TrainingMethod):
    """Train binary weights, ± one constant for each layer. With ``stochastic`` the signs are drawn in each training step.

    Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import BinaryConnect, Recover
    >>> net = BinaryConnect(recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'binary'
    """

    recover: Recover
    stochastic: bool = False

    ABOUT = About(
        name="binary-connect",
        family="quantization",
        summary="train the signs of weights, with one scale for each layer",
        paper="Courbariaux et al. 2015, arXiv 1511.00363",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with binarized targets; their values are the real weights."""
        return LatentWrapper(model, [(target, Signs(target.leaf, stochastic=self.stochastic)) for target in targets])


class Signs(Latent):
    """Plus or minus the constant ``unit`` (``[1, 1]``). The trained values are in units of it, within [−1, 1]."""

    unit: Tensor

    def __init__(self, leaf: Dense, *, stochastic: bool) -> None:
        weight = leaf.values.detach()
        unit = narrowed(weight.abs().mean().reshape(1, 1))
        units = weight / unit.clamp_min(torch.finfo(weight.dtype).tiny).reshape(())
        super().__init__(Dense(units.clamp(-1, 1), leaf.role))
        self.stochastic = stochastic
        self.register_buffer("unit", unit)

    def dense(self) -> Tensor:
        """The signs times ``unit``. In training mode, stochastic signs are drawn at each call."""
        values = self.values.dense()
        drawn = self.stochastic and self.training
        positive = torch.rand_like(values) < (values.detach() + 1) / 2 if drawn else values.detach() >= 0
        unit = self.unit.reshape(())
        return straight_through(torch.where(positive, unit, -unit), values * unit)

    def step(self) -> None:
        """Clip the values to [−1, 1], so that later gradients can still flip their signs."""
        with torch.no_grad():
            self.values.values.clamp_(-1, 1)

    def freeze(self) -> Form:
        """The signs and the constant."""
        return Binary.of(self.values.values.detach(), self.unit)

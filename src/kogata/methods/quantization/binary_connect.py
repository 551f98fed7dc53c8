"""BinaryConnect: two values for all weights of a layer, chosen by the signs of real weights that are trained.

Courbariaux, Bengio, David, "BinaryConnect: Training Deep Neural Networks with binary weights during propagations", NeurIPS
2015 (1511.00363), sections 2.2 to 2.4, for real weights w kept in [−1, 1] after every step:
    deterministic  w_b = +1 if w ≥ 0, else −1
    stochastic     w_b = +1 with probability σ(w) = clip((w + 1) / 2, 0, 1), else −1,  while training; else the sign.
Gradients with respect to w_b change w. A layer's w_b are multiplied by one constant H: the paper starts from random weights,
where its authors' code takes the deviation of Glorot's initialization; here the start is a trained layer, so H is its
mean |w|, the best constant for its signs, and the real weights are in units of H.
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
    """Train with the signs of the weights; ``stochastic`` draws them anew in every training step.

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
        """Each target's values become the real weights behind signs."""
        return LatentWrapper(model, [(target, Signs(target.leaf, stochastic=self.stochastic)) for target in targets])


class Signs(Latent):
    """± ``unit`` (``[1, 1]``), a constant; the trained values are in units of it, within [−1, 1]."""

    unit: Tensor

    def __init__(self, leaf: Dense, *, stochastic: bool) -> None:
        weight = leaf.values.detach()
        unit = narrowed(weight.abs().mean().reshape(1, 1))
        units = weight / unit.clamp_min(torch.finfo(weight.dtype).tiny).reshape(())
        super().__init__(Dense(units.clamp(-1, 1), leaf.role))
        self.stochastic = stochastic
        self.register_buffer("unit", unit)

    def dense(self) -> Tensor:
        """The signs, drawn anew at each call while training if they are stochastic."""
        values = self.values.dense()
        drawn = self.stochastic and self.training
        positive = torch.rand_like(values) < (values.detach() + 1) / 2 if drawn else values.detach() >= 0
        unit = self.unit.reshape(())
        return straight_through(torch.where(positive, unit, -unit), values * unit)

    def step(self) -> None:
        """Back into [−1, 1], where a sign can still be turned."""
        with torch.no_grad():
            self.values.values.clamp_(-1, 1)

    def freeze(self) -> Form:
        """The signs."""
        return Binary.of(self.values.values.detach(), self.unit)

"""Loss-aware binarization: signs and scales that minimize the loss, by a proximal Newton step with Adam's curvature.

Hou, Yao, Kwok, "Loss-aware Binarization of Deep Networks", ICLR 2017 (1611.01600), proposition 3.1 and algorithm 1:
    min over α > 0, b ∈ {±1}ⁿ of ½ (αb − w̃)ᵀ D (αb − w̃):  b = sign(w̃),  α = ‖d ∘ w̃‖₁ / ‖d‖₁,
where w̃ = w − D⁻¹g is the real weight after a step of Adam. d = √v̂ + ε, the root of Adam's second moment of the gradient,
approximates the diagonal of the Hessian. The paper has one α for each layer. The problem separates into rows, so here each row
has its own α, which can only lower the minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from kogata.forms import Binary, Dense, Form, Latent, Role
from kogata.forms.affine import as_rows
from kogata.forms.latent import narrowed, straight_through
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper

DECAY, EPSILON = 0.999, 1e-8  # β₂ and ε of Adam


@final
@dataclass(frozen=True, kw_only=True)
class LAB(TrainingMethod):
    """Train binary weights with a scale for each row, in which each weight counts by the curvature of the loss.

    Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import LAB, Recover
    >>> net = LAB(recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'binary'
    """

    recover: Recover

    ABOUT = About(
        name="lab",
        family="quantization",
        summary="train binary weights, with loss-aware scales for each row",
        paper="Hou et al. 2017, arXiv 1611.01600",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with binarized targets; their values are the real weights."""
        return LatentWrapper(model, [(target, LossAware(target.leaf)) for target in targets])


class LossAware(Latent):
    """α sign(w) for each row, with α weighted by ``curvature``. Before the first step all weights count equally."""

    moment: Tensor  # running mean of squared gradients, the shape of the weight
    steps: Tensor  # int64, number of gradients in the mean

    def __init__(self, values: Dense) -> None:
        super().__init__(values)
        self.register_buffer("moment", torch.zeros_like(values.values))
        self.register_buffer("steps", values.values.new_zeros((), dtype=torch.int64))

    def curvature(self) -> Tensor:
        """d, positive, the shape of the weight."""
        steps = int(self.steps)
        corrected = self.moment / (1 - DECAY**steps) if steps else torch.ones_like(self.moment)
        return corrected.sqrt() + EPSILON

    def dense(self) -> Tensor:
        """α sign(w), the solution of the proximal problem."""
        values = self.values.dense()
        rows_OI = as_rows(values.detach())
        scale_O1 = self._scale()
        return straight_through(torch.where(rows_OI >= 0, scale_O1, -scale_O1).reshape(self.shape), values)

    def step(self) -> None:
        """Update the running mean of the squared gradient, as Adam does."""
        if (gradient := self.values.values.grad) is not None:
            self.moment.mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            self.steps += 1

    def freeze(self) -> Form:
        """Signs and scales."""
        return Binary.of(self.values.values.detach(), self._scale())

    def _scale(self) -> Tensor:
        weight_OI, curvature_OI = as_rows(self.values.values.detach()), as_rows(self.curvature())
        weighted_O1 = (curvature_OI * weight_OI.abs()).sum(1, keepdim=True)
        return narrowed(weighted_O1 / curvature_OI.sum(1, keepdim=True))

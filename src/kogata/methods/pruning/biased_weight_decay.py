"""Biased weight decay: train with a penalty that pulls small weights to zero and hardly affects large ones.

Hanson and Pratt, "Comparing Biases for Minimal Network Construction with Back-Propagation", NeurIPS 1988 (hyperbolic bias):
    L = error + λ Σ |w| / (1 + |w|),   ∂/∂w = λ sign w / (1 + |w|)².
It does not prune: the weights stay dense, but a later pruning step finds more of them near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn

from kogata.forms import Role
from kogata.methods.base.method import About
from kogata.methods.base.trained import TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class BiasedWeightDecay(TrainingMethod):
    """Train with the penalty; ``strength`` is λ, above 0. Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import BiasedWeightDecay, Recover
    >>> net = BiasedWeightDecay(strength=1e-5, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> bool(net.penalty() > 0)
    True
    """

    strength: Annotated[float, Range(gt=0, example=1e-5)]
    recover: Recover

    ABOUT = About(
        name="biased-decay",
        family="pruning",
        summary="train with a penalty that pulls small weights to zero, before another step prunes",
        paper="Hanson and Pratt 1988",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.MATRIX, Role.VALUES}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with the penalty on its targets."""
        return _Decaying(model, [target.leaf.values for target in targets], self.strength)


class _Decaying(TrainingWrapper):
    def __init__(self, model: nn.Module, weights: Sequence[Tensor], strength: float) -> None:
        super().__init__(model)
        self._weights, self._strength = list(weights), strength

    def penalty(self) -> Tensor:
        """λ Σ |w| / (1 + |w|)."""
        sizes = [weight.abs() for weight in self._weights]
        return self._strength * torch.stack([(size / (1 + size)).sum() for size in sizes]).sum()

    def finish(self) -> nn.Module:
        """The model; its weights are still dense."""
        return self.model

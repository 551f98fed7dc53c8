"""Movement pruning: prune the weights that training moves towards zero.

Sanh, Wolf, Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020 (2005.07683), section 3:
    W' = W ∘ M,  M = 1 where S is among the (1 − s) n highest,
    ∂L/∂W = ∂L/∂W' ∘ M,  ∂L/∂S = ∂L/∂W' ∘ W   (straight through the choice of M),
so that under gradient descent S = S_0 − η Σ_t W ∂L/∂W': the score of a weight falls as long as gradient steps move it towards
zero. The sparsity rises by the cubic schedule of Zhu and Gupta (1710.01878) and then stays constant while the weights converge.

The paper starts from S_0 = 0. Here S_0 = c |W|, so that a short training, which has little time to learn scores, starts as
magnitude pruning and departs from it where the weights move. The larger c, the later it departs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from kogata.forms import Dense, Form, Latent, Role
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.kernels.obs import largest
from kogata.methods.pruning.masks import counts, kept
from kogata.methods.recover import Recover
from kogata.training.wrapper import TrainingWrapper

START = 3.0  # c
RISE = 0.3  # the fraction of the training during which the sparsity rises
UPDATES = 100  # number of updates of the mask: choosing it at each step would cost more than the step itself


@final
@dataclass(frozen=True, kw_only=True)
class MovementPruning(TrainingMethod):
    """Train weights together with their scores; the weights with the lowest scores become zero.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included. Each layer
    reaches it (``scope`` "layer"), or all selected layers together ("global"). Raises DataError without training data, and
    NotApplicable when every weight already has the sparsity.

    >>> import torch
    >>> from kogata.methods import MovementPruning, Recover
    >>> net = MovementPruning(sparsity=0.5, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'masked'
    """

    sparsity: Sparsity
    recover: Recover
    scope: Literal["layer", "global"] = "layer"

    ABOUT = About(
        name="movement",
        family="pruning",
        summary="prune the weights that training moves towards zero",
        paper="Sanh et al. 2020, arXiv 2005.07683",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.VALUES}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with a mask on each target, chosen by trainable scores."""
        return _Moving(model, targets, counts(targets, self.sparsity), self.scope)


class Scored(Latent):
    """``values`` where ``mask`` (bool, the same shape) is true, zero elsewhere. Gradients reach every entry of ``score``."""

    mask: Tensor

    def __init__(self, values: Dense) -> None:
        super().__init__(values)
        self.score = nn.Parameter(START * values.values.detach().abs())
        self.register_buffer("mask", torch.ones_like(values.values, dtype=torch.bool))

    def dense(self) -> Tensor:
        """The values under the mask."""
        values = self.values.values
        return values * self.mask + (self.score - self.score.detach()) * values.detach()

    def freeze(self) -> Form:
        """The kept values under the mask."""
        return kept(self.values, self.mask)


class _Moving(LatentWrapper):
    updates: Tensor

    def __init__(self, model: nn.Module, targets: Sequence[TrainedLeaf], keep: Sequence[int], scope: str) -> None:
        scored = [Scored(target.leaf) for target in targets]
        super().__init__(model, list(zip(targets, scored, strict=True)))
        self._scored, self._keep, self._scope = scored, list(keep), scope
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def step(self, progress: float) -> None:
        """Update the masks when the next update is due."""
        if int(progress * UPDATES) > int(self.updates):
            self.updates.fill_(int(progress * UPDATES))
            self._choose(progress)

    def finish(self) -> nn.Module:
        """The model at its final sparsity."""
        self._choose(1.0)
        return super().finish()

    def _choose(self, progress: float) -> None:
        """Choose the masks at the sparsity scheduled for ``progress``."""
        left = (1 - min(progress / RISE, 1.0)) ** 3  # falls from 1, where nothing is pruned, to 0
        sizes = [scored.shape.numel() for scored in self._scored]
        due = [round(k + (n - k) * left) if k < n else n for k, n in zip(self._keep, sizes, strict=True)]
        scores = [scored.score.detach() for scored in self._scored]
        if self._scope == "layer":
            masks = [largest(score, keep) for score, keep in zip(scores, due, strict=True)]
        else:
            together = largest(torch.cat([score.flatten() for score in scores]), sum(due))
            masks = [part.reshape(score.shape) for part, score in zip(together.split(sizes), scores, strict=True)]
        for scored, mask in zip(self._scored, masks, strict=True):
            scored.mask.copy_(mask)

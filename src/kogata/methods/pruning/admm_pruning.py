"""ADMM pruning: a penalty pulls the weights towards the nearest sparse weights during training.

Zhang, Ye, Zhang, Tang, Wen, Fardad, Wang, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", ECCV 2018 (1804.03294), equations 5 to 9:
    min error(W)  subject to  W = Z,  Z at most k entries that are not zero,
by alternating
    W ← argmin error(W) + ρ/2 ‖W − Z + U‖²   (some epochs of training),
    Z ← the k largest entries of W + U, the others zero   (the projection),
    U ← U + W − Z,
and at the end W itself is projected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn

from kogata.forms import Role
from kogata.methods.base.guards import Count, Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.trained import TrainedLeaf, TrainingMethod
from kogata.methods.kernels.obs import largest
from kogata.methods.pruning.masks import counts, kept
from kogata.methods.recover import Recover
from kogata.network import surgery
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class ADMMPruning(TrainingMethod):
    """Train towards sparse weights. At the end, all but the largest entries become zero.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included. ``rho`` is
    ρ, above 0, and ``updates`` the number of updates of Z and U during the training, at least 1. Raises DataError without
    training data, and NotApplicable when every weight already has the sparsity.

    >>> import torch
    >>> from kogata.methods import ADMMPruning, Recover
    >>> net = ADMMPruning(sparsity=0.5, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'masked'
    """

    sparsity: Sparsity
    recover: Recover
    rho: Annotated[float, Range(gt=0, example=0.1)] = 0.1
    updates: Count = 20

    ABOUT = About(
        name="admm",
        family="pruning",
        summary="train with a penalty that pulls weights towards the nearest sparse ones",
        paper="Zhang et al. 2018, arXiv 1804.03294",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.VALUES}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with Z and U for each target."""
        twins = [_Twin(target, keep) for target, keep in zip(targets, counts(targets, self.sparsity), strict=True)]
        return _Alternating(model, twins, self)


class _Twin(nn.Module):
    """Z and U of one target."""

    sparse: Tensor
    dual: Tensor

    def __init__(self, target: TrainedLeaf, keep: int) -> None:
        super().__init__()
        self.target, self.keep = target, keep
        weight = target.leaf.values.detach()
        self.register_buffer("sparse", weight * largest(weight.abs(), keep))
        self.register_buffer("dual", torch.zeros_like(weight))

    def distance(self) -> Tensor:
        """‖W − Z + U‖²."""
        return (self.target.leaf.values - self.sparse + self.dual).square().sum()

    def update(self) -> None:
        """Update Z, then U."""
        weight = self.target.leaf.values.detach()
        aim = weight + self.dual
        self.sparse.copy_(aim * largest(aim.abs(), self.keep))
        self.dual.copy_(aim - self.sparse)


class _Alternating(TrainingWrapper):
    done: Tensor

    def __init__(self, model: nn.Module, twins: Sequence[_Twin], method: ADMMPruning) -> None:
        super().__init__(model)
        self.twins, self._method = nn.ModuleList(twins), method
        self._twins = list(twins)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def penalty(self) -> Tensor:
        """ρ/2 Σ ‖W − Z + U‖²."""
        return self._method.rho / 2 * torch.stack([twin.distance() for twin in self._twins]).sum()

    def step(self, progress: float) -> None:
        """Update Z and U when the next update is due."""
        if int(progress * self._method.updates) > int(self.done):
            self.done.fill_(int(progress * self._method.updates))
            for twin in self._twins:
                twin.update()

    def finish(self) -> nn.Module:
        """The model with its weights projected."""
        for twin in self._twins:
            target, weight = twin.target, twin.target.leaf.values.detach()
            surgery.replace(self.model, target.site, target.path, kept(target.leaf, largest(weight.abs(), twin.keep)))
        return self.model

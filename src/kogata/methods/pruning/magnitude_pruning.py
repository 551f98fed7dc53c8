"""Magnitude pruning: prune the smallest weights, retrain, repeat.

Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (1506.02626):
    keep w_i  iff  |w_i| is among the (1 − s) n largest.
Over several rounds the sparsity s follows the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (1710.01878):
    s_t = s (1 − (1 − t/T)³),  t = 1 … T.
Over several layers weights compete by |w|, or by the layer-adaptive score of Lee et al., ICLR 2021 (2010.07611), eq. 1:
    w² / Σ w'²  over the weights w' of the same layer with |w'| ≥ |w|.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.guards import Count, Sparsity
from kogata.methods.base.method import About, Method
from kogata.methods.base.planned import PlannedLeaf, PlannedMethod
from kogata.methods.kernels import sizes
from kogata.methods.pruning import masks
from kogata.methods.recover import Recover


@final
@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(PlannedMethod[float | None]):
    """Keep the largest weights; the others become zero and stay zero.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included. With
    ``scope`` "layer" each layer reaches it; otherwise all selected layers together do, ranked by |w| ("global") or by the
    layer-adaptive score ("lamp"), which removes less from small layers. With ``rounds`` > 1 the sparsity rises in as many
    steps, and ``recover`` retrains after each of them but the last. Raises NotApplicable when nothing can be pruned, and
    UsageError for ``recover`` with a single round, after which nothing would be retrained.

    >>> from kogata.methods import MagnitudePruning, Recover
    >>> MagnitudePruning(sparsity=0.9, scope="global").title()
    'magnitude'
    >>> gradual = MagnitudePruning(sparsity=0.8, rounds=2, recover=Recover(epochs=1))
    >>> [step.title() for step in gradual.steps()]
    ['magnitude', 'recover', 'magnitude']
    """

    sparsity: Sparsity
    scope: Literal["layer", "global", "lamp"] = "layer"
    rounds: Count = 1
    recover: Recover | None = None

    ABOUT = About(
        name="magnitude",
        family="pruning",
        summary="prune the smallest weights, retrain, repeat",
        paper="Han et al. 2015, arXiv 1506.02626",
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.VALUES}),
    )

    def __post_init__(self) -> None:
        """Also raises UsageError where ``recover`` would never run."""
        super().__post_init__()
        if self.recover is not None and self.rounds == 1:
            raise UsageError(
                "magnitude: recover retrains between rounds, but rounds is 1. Set rounds to 2 or more, or let recover follow "
                "as a step of its own: chain(MagnitudePruning(...), Recover(...))."
            )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The sparsity at which the kept numbers and their mask have the size."""
        sparsity = sizes.sparsity(shape, fraction)
        return None if sparsity is None else cls(sparsity=sparsity)

    def steps(self) -> tuple[Method, ...]:
        """Alternate pruning and recovery, following the cubic schedule."""
        once = replace(self, rounds=1, recover=None)
        steps: list[Method] = []
        for t in range(1, self.rounds + 1):
            steps.append(replace(once, sparsity=self.sparsity * (1 - (1 - t / self.rounds) ** 3)))
            steps += [self.recover] if self.recover is not None and t < self.rounds else []
        return tuple(steps)

    def apply(self, job: Job) -> Job:
        """All rounds; see :meth:`steps`."""
        if self.rounds == 1:
            return super().apply(job)
        for step in self.steps():
            job = step.apply(job)
        return job

    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> float | None:
        """The common threshold of the scores of all layers; None where each layer reaches the sparsity by itself."""
        if self.scope == "layer":
            return None
        return masks.common_threshold("magnitude", leaves, lambda leaf: self._score(leaf.weight), self.sparsity)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask. Of equal magnitudes the first in memory are kept."""
        return masks.highest(weight, weight.abs(), round((1 - self.sparsity) * torch.Size(site.shape).numel()))

    def encode_planned(self, plan: float | None, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The weights whose score reaches the threshold; each layer keeps at least its largest weight."""
        return self.encode(weight, site, stats) if plan is None else masks.above(weight, self._score(weight), plan)

    def _score(self, weight: Tensor) -> Tensor:
        """|w| or the layer-adaptive score; weights with higher scores are kept."""
        if self.scope != "lamp":
            return weight.abs()
        square = weight.double().square().flatten()
        order = square.argsort(descending=True, stable=True)
        score = torch.empty_like(square)
        score[order] = square[order] / square[order].cumsum(0)
        return score.reshape(weight.shape)

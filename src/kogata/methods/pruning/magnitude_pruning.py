"""Magnitude pruning: drop the smallest weights, retrain, repeat.

Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (1506.02626):
    keep w_i  iff  |w_i| is among the (1 − s) n largest.
Over several rounds the sparsity s follows the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (1710.01878):
    s_t = s (1 − (1 − t/T)³),  t = 1 … T.
Over several layers weights compete by |w|, or by the layer-adaptive score of Lee et al., ICLR 2021 (2010.07611), eq. 1:
    w² / Σ w'²  over the weights w' of the same layer with |w'| ≥ |w|.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.guards import Count, Sparsity
from kogata.methods.base.method import About, Method
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.pruning import masks
from kogata.methods.recover import Recover
from kogata.network.sites import form_at, leaves_of, selected_sites


@final
@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(WeightMethod):
    """Keep the largest weights; the others become zero and stay so.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included.
    ``scope`` says whether each layer meets it, or all selected layers together: by |w| alone ("global"), or by the
    layer-adaptive score ("lamp"), which spares the small layers.
    With ``rounds`` > 1 the sparsity rises in as many steps, each but the last followed by ``recover``.
    """

    sparsity: Sparsity
    scope: Literal["layer", "global", "lamp"] = "layer"
    rounds: Count = 1
    recover: Recover | None = None

    ABOUT = About(
        name="magnitude",
        family="pruning",
        summary="drop the smallest weights, retrain, repeat",
        paper="Han et al. 2015, arXiv 1506.02626",
    )
    ACCEPTS = frozenset({Role.MATRIX, Role.VALUES})
    LEAVES = frozenset({Role.VALUES})

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The sparsity at which the numbers left and their mask have the size."""
        sparsity = sizes.sparsity(shape, fraction)
        return None if sparsity is None else cls(sparsity=sparsity)

    def steps(self) -> tuple[Method, ...]:
        """Prune and recover in turn, up the cubic schedule."""
        once = replace(self, rounds=1, recover=None)
        steps: list[Method] = []
        for t in range(1, self.rounds + 1):
            steps.append(replace(once, sparsity=self.sparsity * (1 - (1 - t / self.rounds) ** 3)))
            steps += [self.recover] if self.recover is not None and t < self.rounds else []
        return tuple(steps)

    def apply(self, job: Job) -> Job:
        """All rounds; see :meth:`steps`."""
        if self.rounds > 1:
            for step in self.steps():
                job = step.apply(job)
            return job
        return super().apply(job) if self.scope == "layer" else self._threshold(job).apply(job)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask; of equal magnitudes the first in memory are kept."""
        return masks.highest(weight, weight.abs(), round((1 - self.sparsity) * torch.Size(site.shape).numel()))

    def _threshold(self, job: Job) -> Method:
        """The one threshold that all selected layers together meet the sparsity with."""
        adaptive = self.scope == "lamp"
        scores, total = list[Tensor](), 0
        for site in selected_sites(job):
            for _, leaf, part in leaves_of(form_at(job.model, site), site):
                if leaf.role in self.ACCEPTS:
                    scores.append(_score(leaf.values.detach().float(), adaptive))
                    total += torch.Size(part.shape).numel()
        try:
            threshold = masks.common_threshold(scores, round((1 - self.sparsity) * total))
        except NotApplicable as error:
            raise NotApplicable(f"magnitude: {error}.") from error
        return _Above(threshold=threshold, adaptive=adaptive)


@final
@dataclass(frozen=True, kw_only=True)
class _Above(WeightMethod):
    """Keep the weights whose score reaches the threshold, and of each layer at least the largest."""

    threshold: float
    adaptive: bool

    ABOUT = MagnitudePruning.ABOUT
    ACCEPTS = MagnitudePruning.ACCEPTS
    LEAVES = MagnitudePruning.LEAVES

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask."""
        return masks.above(weight, _score(weight, self.adaptive), self.threshold)


def _score(weight: Tensor, adaptive: bool) -> Tensor:
    """|w|, or the layer-adaptive score: higher is kept."""
    if not adaptive:
        return weight.abs()
    square = weight.double().square().flatten()
    order = square.argsort(descending=True, stable=True)
    score = torch.empty_like(square)
    score[order] = square[order] / square[order].cumsum(0)
    return score.reshape(weight.shape)

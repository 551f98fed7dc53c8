"""Optimal Brain Damage: prune by the second derivative of the loss.

LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989, equation 5. At a minimum of the loss, with a diagonal Hessian,
removing w_k increases the loss by
    s_k = ½ h_kk w_k².
h_kk is estimated by the mean of the squared gradients of single samples (the Fisher diagonal), which for a negative
log-likelihood has the same expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.planned import PlannedLeaf, PlannedMethod
from kogata.methods.pruning import masks


@final
@dataclass(frozen=True, kw_only=True)
class OBD(PlannedMethod[float | None]):
    """Prune the weights whose removal increases the loss least.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included. Each layer
    reaches it (``scope`` "layer"), or all selected layers together ("global"). Raises DataError without a loss and targets.

    >>> from kogata import only
    >>> from kogata.methods import OBD
    >>> from kogata.testing.models import job_of
    >>> job = only(OBD(sparsity=0.75), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'masked'
    """

    sparsity: Sparsity
    scope: Literal["layer", "global"] = "layer"

    ABOUT = About(
        name="obd",
        family="pruning",
        summary="prune the weights of least saliency ½ h w², where h is the Fisher diagonal of the loss",
        paper="LeCun, Denker and Solla 1989",
        needs=frozenset({Stat.FISHER}),
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.VALUES}),
    )

    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> float | None:
        """The common threshold of the saliencies of all layers; None where each layer reaches the sparsity by itself."""
        if self.scope == "layer":
            return None
        return masks.common_threshold("obd", leaves, lambda leaf: saliency(leaf.weight, leaf.stats), self.sparsity)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask, unchanged."""
        keep = round((1 - self.sparsity) * torch.Size(site.shape).numel())
        return masks.highest(weight, saliency(weight, stats), keep)

    def encode_planned(self, plan: float | None, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The weights whose saliency reaches the threshold, unchanged; each layer keeps at least its most salient weight."""
        return self.encode(weight, site, stats) if plan is None else masks.above(weight, saliency(weight, stats), plan)


def saliency(weight: Tensor, stats: Stats) -> Tensor:
    """½ h w² (float64) for each weight. Raises NotApplicable when the loss does not depend on them."""
    if stats.fisher is None:
        raise NotApplicable("the loss has no gradient with respect to it")
    return stats.fisher.double() * weight.double().square() / 2

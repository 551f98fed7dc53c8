"""Optimal Brain Damage: prune by the second derivative of the loss.

LeCun, Denker, Solla, "Optimal Brain Damage", NeurIPS 1989, equation 5: at a minimum, with a diagonal Hessian, losing w_k costs
    s_k = ½ h_kk w_k².
h_kk is the mean squared gradient of single samples, which for a log-likelihood is its expectation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from kogata.calibration.gather import gather
from kogata.calibration.stats import Gathered, Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.job import Job, Site
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.pruning import masks
from kogata.network import surgery
from kogata.network.sites import form_at, leaves_of, selected_sites


@final
@dataclass(frozen=True, kw_only=True)
class OBD(WeightMethod):
    """Keep the weights that the loss would miss most.

    ``sparsity`` is the fraction of a weight's entries that are zero afterwards, in [0, 1), earlier pruning included.
    ``scope`` says whether each layer meets it, or all selected layers together.
    """

    sparsity: Sparsity
    scope: Literal["layer", "global"] = "layer"

    ABOUT = About(
        name="obd",
        family="pruning",
        summary="drop the weights of least saliency ½ h w², h the Fisher diagonal of the loss",
        paper="LeCun, Denker and Solla 1989",
    )
    NEEDS = frozenset({Stat.FISHER})
    ACCEPTS = frozenset({Role.MATRIX, Role.VALUES})
    LEAVES = frozenset({Role.VALUES})

    def apply(self, job: Job) -> Job:
        """Each layer by itself, or all under one threshold."""
        if self.scope == "layer":
            return super().apply(job)
        gathered = list(gather(job, selected_sites(job), self.NEEDS, job.model))
        return self._threshold(job, gathered).encode_each(job, surgery.clone(job.model), gathered)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask, as they were."""
        keep = round((1 - self.sparsity) * torch.Size(site.shape).numel())
        return masks.highest(weight, saliency(weight, stats), keep)

    def _threshold(self, job: Job, gathered: Iterable[tuple[Site, Gathered]]) -> WeightMethod:
        """The one saliency from which on weights are kept, so that the selected layers together meet the sparsity."""
        scores, total = list[Tensor](), 0
        for site, found in gathered:
            form = form_at(job.model, site)
            for path, leaf, part in leaves_of(form, site):
                if leaf.role in self.ACCEPTS:
                    scores.append(saliency(leaf.values.detach().float().cpu(), found.of(form, path)))
                    total += torch.Size(part.shape).numel()
        try:
            threshold = masks.common_threshold(scores, round((1 - self.sparsity) * total))
        except NotApplicable as error:
            raise NotApplicable(f"obd: {error}.") from error
        return _Above(threshold=threshold)


@final
@dataclass(frozen=True, kw_only=True)
class _Above(WeightMethod):
    """Keep the weights whose saliency reaches the threshold, and of each layer at least the most salient."""

    threshold: float

    ABOUT = OBD.ABOUT
    NEEDS = OBD.NEEDS
    ACCEPTS = OBD.ACCEPTS
    LEAVES = OBD.LEAVES

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask, as they were."""
        return masks.above(weight, saliency(weight, stats), self.threshold)


def saliency(weight: Tensor, stats: Stats) -> Tensor:
    """½ h w² (float64), what losing each weight alone costs. Raises NotApplicable where the loss does not depend on them."""
    if stats.fisher is None:
        raise NotApplicable("the loss has no gradient with respect to it")
    return stats.fisher.double() * weight.double().square() / 2

"""Global rank allocation: one budget of parameters or multiply-adds, distributed over all layers.

The options of a layer are the ranks r of a whitened SVD (``whitened_svd.py``), with cost r (O + I), and the dense weight, with
cost O · I. The error of an option is twice the second-order increase of the loss, where the Hessian of the layer is
approximated by a Kronecker product (Martens and Grosse 2015, 1503.05671). With the singular values σ_i and left singular
vectors p_i of W S it is
    e(r) = tr (W − W̃) G (W − W̃)ᵀ H = Σ_{i>r} σ_i² p_iᵀ H p_i,
where H is the second moment of the gradients at the outputs. ``kogata.methods.base.allocation`` distributes the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from kogata.calibration.batches import first_batch
from kogata.calibration.costs import macs
from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form
from kogata.job import Job, Site
from kogata.methods.base.allocation import Option, allocated, hull
from kogata.methods.base.guards import Fraction
from kogata.methods.base.method import About
from kogata.methods.base.planned import PlannedLeaf, PlannedMethod
from kogata.methods.kernels.whitening import spectrum
from kogata.methods.lowrank.whitened_svd import WhitenedSVD

Leaf = tuple[str, tuple[int, ...]]
"""A site's name, and the shape of one of its leaves."""

Ranks = Mapping[Leaf, int | None]
"""The rank of each leaf that can be factored; None where the leaf stays dense."""


@final
@dataclass(frozen=True, kw_only=True)
class RankAllocation(PlannedMethod[Ranks]):
    """Whitened SVD of all selected layers, with ranks chosen within one common budget.

    The budget is ``fraction``, in (0, 1), of the total ``cost`` of the layers that can be factored: their number of parameters,
    or ("macs") their multiply-adds for one sample of the calibration data. ``correct`` is that of WhitenedSVD. Raises DataError
    without a loss and targets, and NotApplicable when even rank 1 in every layer exceeds the budget.

    >>> from kogata import only
    >>> from kogata.methods import RankAllocation
    >>> from kogata.testing.models import job_of
    >>> job = only(RankAllocation(fraction=0.25), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'product'
    """

    fraction: Fraction
    cost: Literal["parameters", "macs"] = "parameters"
    correct: bool = False

    ABOUT = About(
        name="rank-allocation",
        family="low rank",
        summary="whitened SVD with ranks chosen within one budget for all layers",
        paper="Fox 1966; Wang et al. 2025, arXiv 2403.12403",
        layers=WhitenedSVD.ABOUT.layers,
        accepts=WhitenedSVD.ABOUT.accepts,
        leaves=WhitenedSVD.ABOUT.leaves,
        needs=frozenset({Stat.GRAM, Stat.GRADIENT}),
    )

    @property
    def needs(self) -> frozenset[Stat]:
        """Gram matrices and output gradients for the allocation, and the statistics that WhitenedSVD needs."""
        return self.ABOUT.needs | {Stat.CROSS} if self.correct else self.ABOUT.needs

    def decide(self, job: Job, leaves: Iterator[PlannedLeaf]) -> Ranks:
        """The rank of each leaf that can be factored, None where it stays as it is."""
        found, whole = dict[Leaf, list[Option[int | None]]](), 0.0
        uses = macs(job.model, first_batch(job.model, job.task)[0]) if self.cost == "macs" else {}
        for leaf in leaves:
            price = 1.0 if self.cost == "parameters" else uses.get(leaf.site.name, 0) / torch.Size(leaf.site.shape).numel()
            if not price:
                continue
            try:
                lost = losses(leaf.weight, leaf.part, leaf.stats)
            except NotApplicable:
                continue  # encode_planned raises it again, and the report shows the reason
            found[leaf.site.name, tuple(leaf.weight.shape)] = options(leaf.weight.flatten(1).shape, lost, price)
            whole += price * leaf.weight.numel()
        try:
            chosen = allocated(list(found.values()), self.fraction * whole)
        except NotApplicable as error:
            raise NotApplicable(f"rank-allocation: rank 1 everywhere is too large, {error}; give a larger fraction.") from error
        return {leaf: option.choice for leaf, option in zip(found, chosen, strict=True)}

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Encode the layer by itself, with ``fraction`` of its own parameters as the budget."""
        matrix = weight.flatten(1).shape
        (option,) = allocated([options(matrix, losses(weight, site, stats), 1.0)], self.fraction * matrix.numel())
        return self.encode_planned({(site.name, tuple(weight.shape)): option.choice}, weight, site, stats)

    def encode_planned(self, plan: Ranks, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Two factors of the planned rank."""
        leaf = (site.name, tuple(weight.shape))
        if leaf not in plan:
            spectrum(weight, site, stats)  # raises with the reason why the plan has no such leaf, unless it is the following
            raise NotApplicable("the gradients at its outputs, or its multiply-adds, could not be seen")
        rank = plan[leaf]
        if rank is None:
            raise NotApplicable("within the budget it is best left as it is")
        return WhitenedSVD(rank=rank, correct=self.correct).encode(weight, site, stats)


def losses(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """σ_i² p_iᵀ H p_i for each i, largest σ_i first, float64. Raises as ``spectrum`` does, and NotApplicable without H."""
    values_R, basis_OR = spectrum(weight, site, stats)
    if stats.gradient_OO is None:
        raise NotApplicable("the gradients at its outputs could not be seen")
    return values_R * (basis_OR * (stats.gradient_OO.double() @ basis_OR)).sum(0)


def options(shape: torch.Size, lost_R: Tensor, price: float) -> list[Option[int | None]]:
    """The options of a matrix ``[O, I]`` with the error ``lost_R[r:].sum()`` at rank r; ``price`` is the cost of one number.

    The choice of an option is its rank, or None for the dense matrix.
    """
    outputs, inputs = shape
    tails = lost_R.flip(0).cumsum(0).flip(0)
    most = min((outputs * inputs - 1) // (outputs + inputs), len(tails) - 1)  # factors must be smaller than the matrix
    ranks = [Option[int | None](rank, price * rank * (outputs + inputs), float(tails[rank])) for rank in range(1, most + 1)]
    return hull([*ranks, Option(None, price * outputs * inputs, 0.0)])

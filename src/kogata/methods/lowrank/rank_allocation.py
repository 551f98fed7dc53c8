"""Global rank allocation: one budget for all layers, spent where the outputs need it most.

Each layer's options are the ranks r of a whitened SVD (``whitened_svd.py``), with cost r (O + I), and the dense weight, with
cost O · I. The error is twice the loss that a layer's change of output costs, by second order and with the Hessian of the layer
as a Kronecker product (Martens and Grosse 2015, 1503.05671): of the singular values σ_i and left vectors p_i of W S,
    e(r) = tr (W − W̃) G (W − W̃)ᵀ H = Σ_{i>r} σ_i² p_iᵀ H p_i,
with H the second moment of the gradients of the outputs. ``kogata.methods.base.allocation`` shares the budget out.
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
"""The rank of each leaf that can be factored; None where it stays dense."""


@final
@dataclass(frozen=True, kw_only=True)
class RankAllocation(PlannedMethod[Ranks]):
    """Whitened SVD of all selected layers, whose ranks share one budget.

    ``fraction``, in (0, 1), of the ``cost`` of all layers that it can work on is kept: of their parameters, and so of their
    bytes, or of their multiply-accumulates for one sample of the calibration data. ``correct`` is that of WhitenedSVD.

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
        summary="whitened SVD with ranks that share one budget over all layers",
        paper="Fox 1966; Wang et al. 2025, arXiv 2403.12403",
        layers=WhitenedSVD.ABOUT.layers,
        accepts=WhitenedSVD.ABOUT.accepts,
        leaves=WhitenedSVD.ABOUT.leaves,
        needs=frozenset({Stat.GRAM, Stat.GRADIENT}),
    )

    @property
    def needs(self) -> frozenset[Stat]:
        """Grams and gradients to share the budget out, and what WhitenedSVD needs to encode."""
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
                continue  # encoding will say so
            found[leaf.site.name, tuple(leaf.weight.shape)] = options(leaf.weight.flatten(1).shape, lost, price)
            whole += price * leaf.weight.numel()
        try:
            chosen = allocated(list(found.values()), self.fraction * whole)
        except NotApplicable as error:
            raise NotApplicable(f"rank-allocation: rank 1 everywhere is too much, {error}; give a larger fraction.") from error
        return {leaf: option.choice for leaf, option in zip(found, chosen, strict=True)}

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The layer as if it were the only one."""
        matrix = weight.flatten(1).shape
        (option,) = allocated([options(matrix, losses(weight, site, stats), 1.0)], self.fraction * matrix.numel())
        return self.encode_planned({(site.name, tuple(weight.shape)): option.choice}, weight, site, stats)

    def encode_planned(self, plan: Ranks, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Two factors of the allotted rank."""
        leaf = (site.name, tuple(weight.shape))
        if leaf not in plan:
            spectrum(weight, site, stats)  # which says why it was left out, unless it was for this:
            raise NotApplicable("the gradients of its outputs, or its multiply-accumulates, could not be observed")
        rank = plan[leaf]
        if rank is None:
            raise NotApplicable("the budget has more to gain by leaving it as it is")
        return WhitenedSVD(rank=rank, correct=self.correct).encode(weight, site, stats)


def losses(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """σ_i² p_iᵀ H p_i for each i, in the order of σ_i, in float64. Raises NotApplicable as ``spectrum`` does and without H."""
    values_R, basis_OR = spectrum(weight, site, stats)
    if stats.gradient_OO is None:
        raise NotApplicable("the gradients of its outputs could not be observed")
    return values_R * (basis_OR * (stats.gradient_OO.double() @ basis_OR)).sum(0)


def options(shape: torch.Size, lost_R: Tensor, price: float) -> list[Option[int | None]]:
    """Those of a matrix ``[O, I]`` that loses ``lost_R[r:].sum()`` at rank r, at ``price`` for each number; None is dense."""
    outputs, inputs = shape
    tails = lost_R.flip(0).cumsum(0).flip(0)
    most = min((outputs * inputs - 1) // (outputs + inputs), len(tails) - 1)  # factors must hold fewer numbers
    ranks = [Option[int | None](rank, price * rank * (outputs + inputs), float(tails[rank])) for rank in range(1, most + 1)]
    return hull([*ranks, Option(None, price * outputs * inputs, 0.0)])

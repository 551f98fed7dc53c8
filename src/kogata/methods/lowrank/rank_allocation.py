"""Global rank allocation: one budget for all layers, spent where the outputs need it most.

Each layer's options are the ranks r of a whitened SVD (``whitened_svd.py``), with cost r (O + I), and the dense weight, with
cost O · I. The error is twice the loss that a layer's change of output costs, by second order and with the Hessian of the layer
as a Kronecker product (Martens and Grosse 2015, 1503.05671): of the singular values σ_i and left vectors p_i of W S,
    e(r) = tr (W − W̃) G (W − W̃)ᵀ H = Σ_{i>r} σ_i² p_iᵀ H p_i,
with H the second moment of the gradients of the outputs. ``kogata.methods.base.allocation`` shares the budget out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from kogata.calibration.batches import first_batch
from kogata.calibration.costs import macs
from kogata.calibration.gather import gather
from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form
from kogata.job import Job, Site
from kogata.methods.base.allocation import Option, allocated, hull
from kogata.methods.base.guards import Fraction
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels.whitening import spectrum
from kogata.methods.lowrank.whitened_svd import WhitenedSVD, encoded_in_turn
from kogata.network.sites import form_at, leaves_of, selected_sites

Leaf = tuple[str, tuple[int, ...]]  # a site's name, and the shape of a leaf of it


@final
@dataclass(frozen=True, kw_only=True)
class RankAllocation(WeightMethod):
    """Whitened SVD of all selected layers, whose ranks share one budget.

    ``fraction``, in (0, 1), of the ``cost`` of all layers that it can work on is kept: of their parameters, and so of their
    bytes, or of their multiply-accumulates for one sample of the calibration data. ``correct`` is that of WhitenedSVD.
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
    )
    NEEDS = frozenset({Stat.GRAM, Stat.GRADIENT})
    ACCEPTS = WhitenedSVD.ACCEPTS
    LEAVES = WhitenedSVD.LEAVES

    def apply(self, job: Job) -> Job:
        """Look at all layers, share the budget out, and factor each on what the layers before it have become."""
        return _AtRanks(ranks=self._ranks(job), correct=self.correct).apply(job)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The layer as if it were the only one."""
        matrix = weight.flatten(1).shape
        found = options(matrix, losses(weight, site, stats), 1.0)
        (option,) = allocated([found], self.fraction * matrix.numel())
        ranks = {(site.name, tuple(weight.shape)): option.choice}
        return _AtRanks(ranks=ranks, correct=self.correct).encode(weight, site, stats)

    def _ranks(self, job: Job) -> Mapping[Leaf, int | None]:
        """The rank of each leaf that can be factored, None where it stays as it is."""
        sites = selected_sites(job)
        found, whole = dict[Leaf, list[Option[int | None]]](), 0.0
        uses = macs(job.model, first_batch(job.model, job.task)[0]) if self.cost == "macs" else {}
        for site, gathered in gather(job, sites, self.NEEDS, job.model):
            root = form_at(job.model, site)
            for path, leaf, part in leaves_of(root, site):
                weight = leaf.values.detach().float().cpu()
                price = 1.0 if self.cost == "parameters" else uses.get(site.name, 0) / torch.Size(site.shape).numel()
                if not (price and site.kind in self.ABOUT.layers and leaf.role in self.ACCEPTS):
                    continue
                try:
                    lost = losses(weight, part, gathered.of(root, path))
                except NotApplicable:
                    continue  # the report will say so
                found[site.name, tuple(weight.shape)] = options(weight.flatten(1).shape, lost, price)
                whole += price * weight.numel()
        try:
            chosen = allocated(list(found.values()), self.fraction * whole)
        except NotApplicable as error:
            raise NotApplicable(f"rank-allocation: rank 1 everywhere is too much, {error}; give a larger fraction.") from error
        return {leaf: option.choice for leaf, option in zip(found, chosen, strict=True)}


@final
@dataclass(frozen=True, kw_only=True)
class _AtRanks(WeightMethod):
    """Whitened SVD with a rank for each leaf."""

    ranks: Mapping[Leaf, int | None]
    correct: bool

    ABOUT = RankAllocation.ABOUT
    NEEDS = WhitenedSVD.NEEDS
    ACCEPTS = RankAllocation.ACCEPTS
    LEAVES = RankAllocation.LEAVES

    def apply(self, job: Job) -> Job:
        """Encode every layer, on what the layers before it have become."""
        return encoded_in_turn(self, job, correct=self.correct)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Two factors of the allotted rank."""
        leaf = (site.name, tuple(weight.shape))
        if leaf not in self.ranks:
            spectrum(weight, site, stats)  # which says why it was left out, unless it was for this:
            raise NotApplicable("the gradients of its outputs, or its multiply-accumulates, could not be seen")
        rank = self.ranks[leaf]
        if rank is None:
            raise NotApplicable("the budget has more to gain by leaving it as it is")
        return WhitenedSVD(rank=rank, correct=self.correct).encode(weight, site, stats)


def losses(weight: Tensor, site: Site, stats: Stats) -> Tensor:
    """σ_i² p_iᵀ H p_i for each i, in the order of σ_i, in float64. Raises NotApplicable as ``spectrum`` does and without H."""
    values_R, basis_OR = spectrum(weight, site, stats)
    if stats.gradient_OO is None:
        raise NotApplicable("the gradients of its outputs could not be seen")
    return values_R * (basis_OR * (stats.gradient_OO.double() @ basis_OR)).sum(0)


def options(shape: torch.Size, lost_R: Tensor, price: float) -> list[Option[int | None]]:
    """Those of a matrix ``[O, I]`` that loses ``lost_R[r:].sum()`` at rank r, at ``price`` for each number; None is dense."""
    outputs, inputs = shape
    tails = lost_R.flip(0).cumsum(0).flip(0)
    most = min((outputs * inputs - 1) // (outputs + inputs), len(tails) - 1)  # factors must hold fewer numbers
    ranks = [Option[int | None](rank, price * rank * (outputs + inputs), float(tails[rank])) for rank in range(1, most + 1)]
    return hull([*ranks, Option(None, price * outputs * inputs, 0.0)])

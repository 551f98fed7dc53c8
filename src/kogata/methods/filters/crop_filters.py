"""Doubly convolution: the filters of a layer are all crops of larger filters.

Zhai, Cheng, Lu, Zhang, "Doubly Convolutional Neural Networks", NeurIPS 2016 (1610.09716), section 3: a meta filter of extent
z′ > z holds (z′ − z + 1)² filters of extent z, each moved by a place against its neighbour:
    W[(m, y, x), i, a, b] = M[m, i, y + a, x + b].
Trained filters tend to be moved copies of each other, says the paper's section 2. Of a trained layer the nearest meta filter
holds, at each place, the mean of all filters that lie over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.filter_maps import Crops, crops
from kogata.job import Kind, Site
from kogata.methods.base.guards import Count, ResidualRank, Tolerance
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import transfer
from kogata.methods.kernels import sizes


@final
@dataclass(frozen=True, kw_only=True)
class CropFilters(WeightMethod):
    """Let filters of a convolution that are nearest to moved copies of each other be crops of one filter.

    ``margin`` (from 1): how much higher and wider that is; (margin + 1)² filters lie in it. ``tolerance``: the most that the
    outputs may change by, relative to them, on the calibration data; None shares everywhere. ``residual``: the rank, a count
    or a fraction, of a product that mends what the crops miss.

    >>> from kogata import only
    >>> from kogata.methods import CropFilters
    >>> from kogata.testing.models import job_of
    >>> job = only(CropFilters(), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'permuted(tied)'
    """

    margin: Count = 1
    tolerance: Tolerance = None
    residual: ResidualRank = 0

    ABOUT = About(
        name="crop-filters",
        family="filters",
        summary="filters are crops of larger ones",
        paper="Zhai et al. 2016, arXiv 1610.09716",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest margin; None for other than two-dimensional kernels."""
        kernel = shape[-1] if len(shape) == 4 else 1
        shares = {m: ((kernel + m) / ((m + 1) * kernel)) ** 2 for m in range(1, kernel)}
        margin = next((m for m, share in shares.items() if sizes.tied(shape, fraction, share)), None)
        return None if margin is None else cls(margin=margin)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The groups that lose least where they overlap; refused for kernels of one place, and above the tolerance."""
        copies = (self.margin + 1) ** 2
        transfer.refuse_unless_shareable(weight, site, stats, copies)
        transfer.refuse_unless_square(weight, "moving a filter")
        kernel = weight.shape[2]
        if self.margin >= kernel:
            raise NotApplicable(f"moved by {self.margin}, filters of extent {kernel} overlap no more; lower the margin")
        extent = kernel + self.margin
        order = transfer.grouped(mismatches(weight, extent))
        form = transfer.tied(Crops(extent), weight, (len(weight) // copies, weight.shape[1], extent, extent), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)


def mismatches(weight: Tensor, extent: int) -> Tensor:
    """``[T, O, O]``: the squared difference of filter i at the first crop and j at crop t, where both lie over each other."""
    kernel = weight.shape[2]
    pairs = [(weight[:, :, y:, x:], weight[:, :, : kernel - y, : kernel - x]) for y, x in crops(kernel, extent)]
    return torch.cat([transfer.distances(first[None], moved) for first, moved in pairs])

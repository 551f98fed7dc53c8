"""Doubly convolution: the filters of a layer are crops of larger filters.

Zhai, Cheng, Lu, Zhang, "Doubly Convolutional Neural Networks", NeurIPS 2016 (1610.09716), section 3. A meta filter of size z′ >
z contains (z′ − z + 1)² filters of size z, each shifted by one position:
    W[(m, y, x), i, a, b] = M[m, i, y + a, x + b].
Trained filters tend to be shifted copies of each other (section 2 of the paper). The least-squares meta filter of a trained
layer is, at each position, the mean of all filters that cover it.
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
    """Replace groups of filters that are nearly shifted copies of each other by crops of one larger filter.

    The larger filter is ``margin`` (1 or more) higher and wider, and contains (margin + 1)² filters. ``tolerance``, above 0, is
    the largest relative error of the layer's outputs on the calibration data; None allows any error. ``residual`` is the rank
    of an added low-rank correction: a count, 0 for none, or a fraction of the full rank in (0, 1). Layers with a non-square
    kernel or with a number of filters that the groups do not divide stay as they are.

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
        """The smallest margin that fits; None unless the kernel is two-dimensional."""
        kernel = shape[-1] if len(shape) == 4 else 1
        shares = {m: ((kernel + m) / ((m + 1) * kernel)) ** 2 for m in range(1, kernel)}
        margin = next((m for m, share in shares.items() if sizes.tied(shape, fraction, share)), None)
        return None if margin is None else cls(margin=margin)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The groups with the smallest mismatch where they overlap; refused for 1×1 kernels, and above the tolerance."""
        copies = (self.margin + 1) ** 2
        transfer.refuse_unless_shareable(weight, site, stats, copies)
        transfer.refuse_unless_square(weight, "moving a filter")
        kernel = weight.shape[2]
        if self.margin >= kernel:
            raise NotApplicable(f"shifted by {self.margin}, filters of size {kernel} do not overlap; lower the margin")
        extent = kernel + self.margin
        order = transfer.grouped(mismatches(weight, extent))
        form = transfer.tied(Crops(extent), weight, (len(weight) // copies, weight.shape[1], extent, extent), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)


def mismatches(weight: Tensor, extent: int) -> Tensor:
    """``[T, O, O]``: the squared difference of filter i at crop 0 and filter j at crop t, over their common positions."""
    kernel = weight.shape[2]
    pairs = [(weight[:, :, y:, x:], weight[:, :, : kernel - y, : kernel - x]) for y, x in crops(kernel, extent)]
    return torch.cat([transfer.distances(first[None], moved) for first, moved in pairs])

"""Cyclic filters: four filters are rotations of one filter by 90°.

Dieleman, De Fauw, Kavukcuoglu, "Exploiting Cyclic Symmetry in Convolutional Neural Networks", ICML 2016 (1602.02660), 3:
applying one filter to the four rotations of an image (slice), and combining the rotated maps (roll, pool), is the same as
applying the four rotations of the filter to the image:
    (R^t b) ∗ x = R^t (b ∗ R^−t x),   t = 0 … 3.
For four trained filters the least-squares b is ¼ Σ_t R^−t W_t. Input channels are not permuted; ``group-filters`` can also
permute them. The layers for training from scratch are in ``kogata.nn.filters``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.forms.filter_maps import Orbit
from kogata.job import Kind, Site
from kogata.methods.base.guards import ResidualRank, Tolerance
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import transfer
from kogata.methods.kernels import sizes


@final
@dataclass(frozen=True, kw_only=True)
class CyclicFilters(WeightMethod):
    """Replace groups of four similar filters by the four rotations of one filter.

    ``tolerance``, above 0, is the largest relative error of the layer's outputs on the calibration data; None allows any error.
    ``residual`` is the rank of an added low-rank correction: a count, 0 for none, or a fraction of the full rank in (0, 1).
    Layers with a non-square kernel or with a number of filters that is not a multiple of 4 stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import CyclicFilters
    >>> from kogata.testing.models import job_of
    >>> job = only(CyclicFilters(), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'permuted(tied)'
    """

    tolerance: Tolerance = None
    residual: ResidualRank = 0

    ABOUT = About(
        name="cyclic-filters",
        family="filters",
        summary="four filters are rotations of one by 90°",
        paper="Dieleman et al. 2016, arXiv 1602.02660",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The form holds a quarter of the numbers."""
        return cls() if sizes.tied(shape, fraction, 1 / 4) else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The most similar groups; refused for kernels that are not square, and above the tolerance."""
        transfer.refuse_unless_shareable(weight, site, stats, 4)
        transfer.refuse_unless_square(weight, "turning a filter")
        map = Orbit(mirrored=False, stacked=False)
        order = transfer.grouped(transfer.distances(transfer.transforms(map, weight, 4), weight))
        form = transfer.tied(map, weight, (len(weight) // 4, *weight.shape[1:]), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)

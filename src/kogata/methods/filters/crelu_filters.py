"""CReLU: filters in pairs of opposite sign share one parameter.

Shang, Sohn, Almeida, Lee, "Understanding and Improving Convolutional Neural Networks via Concatenated Rectified Linear Units",
ICML 2016 (1603.05201), section 2: trained filters tend to have a partner of opposite phase, so a layer computes half of them:
    CReLU(x) = ReLU([x, −x]),   that is, filters  [b, −b].
Of two trained filters the nearest pair is b = (W_i − W_j)/2, which loses ‖W_i + W_j‖²/2: the most opposite are paired. As plain
layers the convolution has half the filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.forms.filter_maps import Opposite
from kogata.job import Kind, Site
from kogata.methods.base.guards import ResidualRank, Tolerance
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import transfer
from kogata.methods.kernels import sizes


@final
@dataclass(frozen=True, kw_only=True)
class CReLUFilters(WeightMethod):
    """Pair each filter of a convolution with its nearest opposite, where the outputs then change by ``tolerance`` at most.

    The tolerance is relative to the outputs, on the calibration data; None shares everywhere. A ``residual`` rank, a count or
    a fraction of the full rank, adds a product that mends what the pairs miss.

    >>> from kogata import only
    >>> from kogata.methods import CReLUFilters
    >>> from kogata.testing.models import job_of
    >>> job = only(CReLUFilters(), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'permuted(tied)'
    """

    tolerance: Tolerance = None
    residual: ResidualRank = 0

    ABOUT = About(
        name="crelu-filters",
        family="filters",
        summary="each filter and its negative are one parameter",
        paper="Shang et al. 2016, arXiv 1603.05201",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """It holds half of the numbers."""
        return cls() if sizes.tied(shape, fraction, 1 / 2) else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The pairs that lose least; refused for an odd number of filters, and above the tolerance."""
        transfer.refuse_unless_shareable(weight, site, stats, 2)
        order = transfer.grouped(transfer.distances(transfer.transforms(Opposite(), weight, 2), weight))
        form = transfer.tied(Opposite(), weight, (len(weight) // 2, *weight.shape[1:]), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)

"""CReLU: pairs of filters with opposite sign share their parameters.

Shang, Sohn, Almeida, Lee, "Understanding and Improving Convolutional Neural Networks via Concatenated Rectified Linear Units",
ICML 2016 (1603.05201), section 2: trained filters tend to have a partner of opposite phase, so a layer computes half of them:
    CReLU(x) = ReLU([x, −x]),   that is, filters  [b, −b].
For two trained filters the least-squares pair is b = (W_i − W_j)/2, with the error ‖W_i + W_j‖²/2, so the most opposite filters
are paired. Lowered to ordinary layers, the convolution has half the filters.
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
    """Replace pairs of nearly opposite filters of a convolution by one filter and its negative.

    ``tolerance``, above 0, is the largest relative error of the layer's outputs on the calibration data; a layer with a larger
    one stays dense, and None allows any error. ``residual`` is the rank of an added low-rank correction: a count, 0 for none,
    or a fraction of the full rank in (0, 1). Layers with an odd number of filters, and grouped convolutions, stay as they are.

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
        summary="each filter and its negative share their parameters",
        paper="Shang et al. 2016, arXiv 1603.05201",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The form holds half of the numbers."""
        return cls() if sizes.tied(shape, fraction, 1 / 2) else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The most similar pairs; refused for an odd number of filters, and above the tolerance."""
        transfer.refuse_unless_shareable(weight, site, stats, 2)
        order = transfer.grouped(transfer.distances(transfer.transforms(Opposite(), weight, 2), weight))
        form = transfer.tied(Opposite(), weight, (len(weight) // 2, *weight.shape[1:]), order)
        return transfer.within(form, weight, site, stats, self.tolerance, self.residual)

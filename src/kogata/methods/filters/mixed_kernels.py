"""Mixed kernels: some filters of a layer keep their kernel, the others become 1×1.

Cheng, Wang, Zhou, Zhang 2017 (1710.09282), section IV; Szegedy et al. 2016 (1602.07261) and Iandola et al. 2016 (1602.07360),
strategy 1, on nets that mix the two kernels from the start. From a trained layer with inputs X, of which X_c are those in the
centre of the kernel, each filter w becomes the better of
    w itself,   and   v = argmin ‖X w − X_c v‖² = (X_cᵀ X_c)⁻¹ X_cᵀ X w,
and the filters with the smallest increase of the error become 1×1. For a given number of each, this choice is optimal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Role
from kogata.forms.stacked import Stacked
from kogata.job import Kind, Site
from kogata.methods.base.guards import Fraction
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import compact


@final
@dataclass(frozen=True, kw_only=True)
class MixedKernels(WeightMethod):
    """Replace some filters of a convolution by 1×1 filters. ``share``, in (0, 1), is the fraction that keep their kernel.

    Kernels with a single position or an even side, and grouped convolutions, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import MixedKernels
    >>> from kogata.testing.models import job_of
    >>> job = only(MixedKernels(share=0.25), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'stacked'
    """

    share: Fraction

    ABOUT = About(
        name="mixed-kernels",
        family="filters",
        summary="some filters keep their kernel, the others become 1×1",
        paper="Cheng et al. 2017, arXiv 1710.09282, section IV",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest fraction of full filters that fits; None for kernels with a single position."""
        places = math.prod(shape[2:])
        large = int((fraction * places - 1) * shape[0] / (places - 1)) if places > 1 else 0
        return cls(share=large / shape[0]) if large > 0 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The filters of both sizes; refused for 1×1 and even kernels, and for grouped convolutions."""
        centre = compact.centre_of(weight, "mixed-kernels")
        count = compact.large_filters(self.share, len(weight))
        gram_II = compact.gram_of(weight, site, stats)
        sizes = weight.flatten(2).shape[1:]
        cross_OIK = (weight.flatten(1).double() @ gram_II).unflatten(1, sizes)
        found = compact.best_filters(gram_II.unflatten(1, sizes).unflatten(0, sizes), cross_OIK, centre, count)
        small = found.small_OS.to(weight.dtype).reshape(*found.small_OS.shape, *(1 for _ in weight.shape[2:]))
        return Stacked.of(found.member_O, [small, weight[found.member_O == 1]], weight.shape[2:])

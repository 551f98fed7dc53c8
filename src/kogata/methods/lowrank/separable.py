"""Separable filters: a convolution becomes a vertical one followed by a horizontal one.

Jaderberg, Vedaldi, Zisserman, BMVC 2014 (1405.3866), section 2.2, scheme 2; the closed-form optimum by Tai, Xiao, Wang, E,
ICLR 2016 (1511.06067), theorem 1:
    W[n, c] ≈ Σ_{k≤K} h_n^k (v_c^k)ᵀ,  the rank-K SVD of the matrix M[(c, i), (j, n)] = W[n, c, i, j],
so that ‖W − W̃‖² is the sum of the discarded squared singular values of M, the minimum over all such filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.product import SEPARABLE
from kogata.job import Kind, Site
from kogata.methods.base.guards import Rank, refuse_unless_finite
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import svd


@final
@dataclass(frozen=True, kw_only=True)
class Separable(WeightMethod):
    """Replace a 2-d convolution by d×1 filters from the inputs to ``rank`` channels and 1×d filters from these to the outputs.

    ``rank`` is a count (int ≥ 1), or a fraction in (0, 1) of the full rank, which is the smaller of inputs · height and
    outputs · width. Kernels with a side of 1, and weights that would not get smaller, stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Separable
    >>> from kogata.testing.models import job_of
    >>> job = only(Separable(rank=8), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'product'
    """

    rank: Rank

    ABOUT = About(
        name="separable",
        family="low rank",
        summary="a convolution becomes a vertical one and a horizontal one",
        paper="Tai et al. 2016, arXiv 1511.06067; Jaderberg et al. 2014, arXiv 1405.3866",
        layers=(Kind.CONV,),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest rank that fits; None unless the kernel is two-dimensional."""
        if len(shape) != 4:
            return None
        outputs, inputs, height, width = shape
        rank = int(fraction * math.prod(shape) / (inputs * height + width * outputs))
        return cls(rank=rank) if rank else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The best pair of filters; refused for kernels with a side of 1, and where they are no smaller."""
        if weight.ndim != 4 or min(weight.shape[2:]) == 1:
            raise NotApplicable(f"only 2-d kernels larger than 1 along both axes can be split, this weight is {site.shape}")
        outputs, inputs, height, width = weight.shape
        matrix = weight.permute(1, 2, 3, 0).reshape(inputs * height, width * outputs)
        rank = svd.rank_of(self.rank, min(matrix.shape))
        if rank * sum(matrix.shape) >= weight.numel():
            raise NotApplicable(f"rank {rank} of {min(matrix.shape)} holds no fewer numbers than the weight {site.shape}")
        refuse_unless_finite(weight, site)
        u, s_R, v = svd.truncated(matrix, rank)
        root_R = s_R.sqrt()
        down_RIH = (u * root_R).T.reshape(rank, inputs, height)
        across_ORW = (root_R[:, None] * v).reshape(rank, width, outputs).permute(2, 0, 1)
        return Product.of(SEPARABLE, [across_ORW, down_RIH], weight.shape)

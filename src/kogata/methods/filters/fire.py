"""Fire: a 1×1 convolution squeezes the channels, then parallel 1×1 and 3×3 filters expand them.

Iandola et al., "SqueezeNet", 2016 (1602.07360), section 3.2. Here there is no nonlinearity between the two layers, so the block
is linear and can approximate a trained convolution W:
    V[o, i, k] = Σ_s E[o, s, k] S[s, i],   where E[o, s, k] = 0 except in the centre for the 1×1 filters o.
With inputs X, ‖X (W − V)ᵀ‖² is a least-squares problem in E and in S. S is initialized with the leading input directions of W,
whitened by their mean Gram matrix. Then E, with the optimal choice of its 1×1 filters, and S are optimized in turn, and the
error never increases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Product, Role
from kogata.forms.base import Dense
from kogata.forms.product import SQUEEZED
from kogata.forms.stacked import Stacked
from kogata.job import Kind, Site
from kogata.methods.base.guards import Fraction, Rank, refuse_unless_fewer
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import compact
from kogata.methods.kernels import conjugate_gradients, svd

SWEEPS = 6  # alternations of E and S
SHARE = 0.5  # default fraction of the filters that keep their kernel
STEPS = 12  # conjugate gradient steps for S; its linear system is too large to factor


@final
@dataclass(frozen=True, kw_only=True)
class Fire(WeightMethod):
    """Replace a convolution by a 1×1 convolution to fewer channels, followed by filters with the full or a 1×1 kernel.

    ``squeeze`` is the number of channels between them (int ≥ 1), or a fraction of the inputs (float in (0, 1)). ``share``, in
    (0, 1), is the fraction of filters that keep their kernel. Kernels with a single position or an even side, grouped
    convolutions, and weights that would not get smaller stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import Fire
    >>> from kogata.testing.models import job_of
    >>> job = only(Fire(squeeze=4), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'product(stacked)'
    """

    squeeze: Rank
    share: Fraction = SHARE

    ABOUT = About(
        name="fire",
        family="filters",
        summary="a 1×1 convolution to fewer channels, then parallel 1×1 and 3×3 filters",
        paper="Iandola et al. 2016, arXiv 1602.07360",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest squeeze that fits, with half of the filters keeping their kernel; None for matrices."""
        squeeze = int(fraction * math.prod(shape) / held(shape, 1, round(SHARE * shape[0])))
        return cls(squeeze=min(squeeze, shape[1]), share=SHARE) if squeeze and len(shape) > 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Squeeze and filters; refused for 1×1 and even kernels, grouped convolutions, and where they are no smaller."""
        centre = compact.centre_of(weight, "fire")
        outputs, inputs, *kernel = weight.shape
        width, count = svd.rank_of(self.squeeze, inputs), compact.large_filters(self.share, outputs)
        if width > inputs:
            raise NotApplicable(f"it has {inputs} input channels, fewer than the squeeze of {width}")
        places = weight[0, 0].numel()
        refuse_unless_fewer(held(weight.shape, width, count), weight, f"fire with {width} channels between")
        gram = compact.gram_of(weight, site, stats).reshape(inputs, places, inputs, places)
        found, squeeze_SI = fitted(weight.flatten(2).double(), gram, centre, width, count)
        filters = (found.small_OS.reshape(-1, width, *(1 for _ in kernel)), found.large_OSK.reshape(-1, width, *kernel))
        expand = Stacked.of(found.member_O, [part.to(weight.dtype) for part in filters], kernel)
        squeeze = Dense(squeeze_SI.to(weight.dtype).contiguous(), Role.MATRIX)
        return Product(SQUEEZED[len(kernel)], [expand, squeeze], weight.shape)


def held(shape: Sequence[int], width: int, count: int) -> int:
    """The number of entries of the squeeze to ``width`` channels and of all filters, of which ``count`` keep their kernel."""
    return width * (shape[1] + shape[0] - count + count * math.prod(shape[2:]))


def fitted(weight_OIK: Tensor, gram: Tensor, centre: int, width: int, count: int) -> tuple[compact.Filters, Tensor]:
    """The filters and the squeeze ``[S, I]`` for a float64 weight and Gram matrix ``[I, K, I, K]``."""
    wanted_OIK = torch.einsum("oik,ikjl->ojl", weight_OIK, gram)
    squeeze_SI = leading(weight_OIK, gram, width)
    for _ in range(SWEEPS):
        filters_OSK = expanded(wanted_OIK, gram, squeeze_SI, centre, count).full(centre)
        squeeze_SI = squeezed(wanted_OIK, gram, filters_OSK, squeeze_SI)
    return expanded(wanted_OIK, gram, squeeze_SI, centre, count), squeeze_SI


def leading(weight_OIK: Tensor, gram: Tensor, width: int) -> Tensor:
    """The leading input directions ``[S, I]``, using the mean Gram matrix of all kernel positions for each position."""
    mean_II = torch.einsum("ikjk->ij", gram) / gram.shape[1]
    lower_II = torch.linalg.cholesky(mean_II)
    white_QI = weight_OIK.permute(0, 2, 1).flatten(0, 1) @ lower_II
    basis_IS = svd.leading(white_QI.T, width)
    squeeze_SI = torch.linalg.solve_triangular(lower_II, basis_IS.T, upper=False, left=False)
    return squeeze_SI / squeeze_SI.norm(dim=1, keepdim=True)


def expanded(wanted_OIK: Tensor, gram: Tensor, squeeze_SI: Tensor, centre: int, count: int) -> compact.Filters:
    """The best filters for a given squeeze."""
    inner = torch.einsum("si,ikjl,tj->sktl", squeeze_SI, gram, squeeze_SI)
    return compact.best_filters(inner, torch.einsum("oik,si->osk", wanted_OIK, squeeze_SI), centre, count)


def squeezed(wanted_OIK: Tensor, gram: Tensor, filters_OSK: Tensor, squeeze_SI: Tensor) -> Tensor:
    """A squeeze with a smaller error for given filters."""
    pairs = torch.einsum("osk,otl->sktl", filters_OSK, filters_OSK)

    def apply(flat_1N: Tensor) -> Tensor:
        reached = torch.einsum("tj,jlik->tlik", flat_1N.reshape(squeeze_SI.shape), gram)
        return torch.einsum("sktl,tlik->si", pairs, reached).reshape(1, -1)

    right_1N = torch.einsum("osk,oik->si", filters_OSK, wanted_OIK).reshape(1, -1)
    diagonal_1N = torch.einsum("sksl,ikil->si", pairs, gram).reshape(1, -1)
    return conjugate_gradients.solve(apply, right_1N, diagonal_1N, squeeze_SI.reshape(1, -1), STEPS).reshape(squeeze_SI.shape)

"""Depthwise separable: a few filters on each input channel, followed by a 1×1 convolution.

Howard et al., "MobileNets", 2017 (1704.04861), section 3.1; Sifre 2014. Here there is no nonlinearity between the two layers,
so the block is linear and can approximate a trained convolution W:
    V[o, i, k] = Σ_m P[o, i, m] D[i, m, k],   m = 1 … M: for each input channel i a matrix [o, k] of rank M.
With G = XᵀX / rows and all channels but i fixed, the best X_i = P_i D_i is the truncation of
    T_i = W_i + ((W − V)_{others} G)_i G_ii⁻¹   to rank M in the norm  ‖(T_i − X_i) L‖,  G_ii = L Lᵀ   (Eckart and Young),
so the channels are optimized in turn, and the error never increases. Finally, P is fitted by least squares to the outputs of D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.forms import Form, Product, Role
from kogata.forms.product import DEPTHWISE
from kogata.job import Kind, Site
from kogata.methods.base.guards import Count, kernel_of, refuse_unless_fewer
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters import compact
from kogata.methods.kernels import svd

SWEEPS = 3  # passes over the channels


@final
@dataclass(frozen=True, kw_only=True)
class DepthwiseSeparable(WeightMethod):
    """Replace a convolution by ``multiplier`` filters (1 or more) on each input channel and a 1×1 convolution.

    Kernels with a single position, grouped convolutions, and weights that would not get smaller stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import DepthwiseSeparable
    >>> from kogata.testing.models import job_of
    >>> job = only(DepthwiseSeparable(), "deep").apply(job_of("conv"))
    >>> job.model.deep.parametrizations.weight[0].describe()
    'product'
    """

    multiplier: Count = 1

    ABOUT = About(
        name="depthwise-separable",
        family="filters",
        summary="a few filters on each input channel, then a 1×1 convolution",
        paper="Howard et al. 2017, arXiv 1704.04861",
        layers=(Kind.CONV,),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The largest number of filters on each channel that fits; None for matrices."""
        multiplier = int(fraction * math.prod(shape) / held(shape, 1))
        return cls(multiplier=multiplier) if multiplier and len(shape) > 2 else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Both layers; refused for kernels with a single position, grouped convolutions, and where they are no smaller."""
        kernel_of(weight, "depthwise-separable")
        weight_OIK = weight.flatten(2)
        outputs, inputs, places = weight_OIK.shape
        refuse_unless_fewer(held(weight.shape, self.multiplier), weight, f"a multiplier of {self.multiplier}")
        gram = compact.gram_of(weight, site, stats).reshape(inputs, places, inputs, places)
        filters_IMK = fitted(weight_OIK.double(), gram, min(self.multiplier, outputs, places))
        mix_OIM = mixed(weight_OIK.double(), gram, filters_IMK)
        return Product.of(DEPTHWISE, [mix_OIM.to(weight.dtype), filters_IMK.to(weight.dtype)], weight.shape)


def held(shape: Sequence[int], multiplier: int) -> int:
    """The number of entries of both layers for a weight of ``shape``."""
    return shape[1] * multiplier * (shape[0] + math.prod(shape[2:]))


def fitted(weight_OIK: Tensor, gram: Tensor, count: int) -> Tensor:
    """The filters ``[I, M, K]`` of each channel, with norm 1, for a float64 weight and Gram matrix ``[I, K, I, K]``."""
    inputs, places = gram.shape[:2]
    own_IKK = torch.einsum("ikil->ikl", gram)
    lower_IKK = torch.linalg.cholesky(own_IKK)
    parts_IOK, filters_IMK = weight_OIK.new_zeros(inputs, len(weight_OIK), places), weight_OIK.new_zeros(inputs, count, places)
    for i in range(inputs):
        parts_IOK[i], filters_IMK[i] = truncated(weight_OIK[:, i], lower_IKK[i], count)
    missed_OIK = torch.einsum("oik,ikjl->ojl", weight_OIK - parts_IOK.transpose(0, 1), gram)  # (W − V) G
    for _ in range(SWEEPS):
        for i in range(inputs):
            target_OK = parts_IOK[i] + torch.cholesky_solve(missed_OIK[:, i].T, lower_IKK[i]).T
            part_OK, filters_IMK[i] = truncated(target_OK, lower_IKK[i], count)
            missed_OIK -= torch.einsum("ok,kjl->ojl", part_OK - parts_IOK[i], gram[i])
            parts_IOK[i] = part_OK
    return filters_IMK / filters_IMK.norm(dim=2, keepdim=True)


def truncated(target_OK: Tensor, lower_KK: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best approximation ``[O, K]`` of rank M in the norm ‖· L‖, and a basis of its row space ``[M, K]``."""
    white_OK = target_OK @ lower_KK
    basis_KM = svd.leading(white_OK.T, count)
    rows_MK = torch.linalg.solve_triangular(lower_KK, basis_KM.T, upper=False, left=False)
    return white_OK @ basis_KM @ rows_MK, rows_MK


def mixed(weight_OIK: Tensor, gram: Tensor, filters_IMK: Tensor) -> Tensor:
    """The 1×1 convolution ``[O, I, M]`` with the least error for given depthwise filters."""
    inputs, count = filters_IMK.shape[:2]
    inner = torch.einsum("imk,ikjl,jnl->imjn", filters_IMK, gram, filters_IMK).reshape(inputs * count, -1)
    reached = torch.einsum("ikjl,jnl->ikjn", gram, filters_IMK).reshape(inputs * gram.shape[1], -1)
    mix = torch.linalg.solve(inner, weight_OIK.flatten(1) @ reached, left=False)
    return mix.reshape(len(weight_OIK), inputs, count)

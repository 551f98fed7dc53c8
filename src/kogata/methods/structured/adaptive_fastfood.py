"""Adaptive Fastfood: a product of trainable diagonals, fixed Hadamard transforms and a fixed permutation.

Yang, Moczulski, Denil, de Freitas, Smola, Song, Wang, ICCV 2015 (1412.7149), equation 2; Le, Sarlós, Smola, ICML 2013:
    W ≈ S H G Π H B,   S, G, B diagonal, H Hadamard, Π a permutation,
with one such product for each block of n outputs, where n is the smallest power of two that is at least the number of inputs.
There is no closed form for a trained weight, but W̃ is linear in each diagonal, so each has one while the others are fixed:
    s_o = ⟨W_o, A_o⟩ / ‖A_o‖²  (A = H G Π H B),   b_i alike by columns,   (UᵀU ∘ V Vᵀ) g = diag(Uᵀ W Vᵀ)  (U = S H, V = Π H B).
Alternating these never increases ‖W − W̃‖. The approximation of a general weight is poor, so train afterwards.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.fastfood import Fastfood, permutations, sizes
from kogata.forms.hadamard import hadamard
from kogata.forms.tied import MAX_ENTRIES
from kogata.job import Site
from kogata.methods.base.guards import Count, ResidualCount, refuse_unless_fewer
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.structured import projection

LARGEST = 2048  # largest number of columns for which ``sized`` proposes this method; larger ones take long to fit
RIDGE = 1e-9  # added to the diagonal of the system for g, relative to its mean, because it may be singular


@final
@dataclass(frozen=True, kw_only=True)
class AdaptiveFastfood(WeightMethod):
    """Replace a matrix by Fastfood products, with diagonals fitted in ``rounds`` (1 or more) rounds of least squares.

    Inputs are padded to a power of two, and surplus outputs are cropped. The permutations are seeded by the weight's name.
    ``residual`` is the rank of an added low-rank correction, 0 for none. Weights that would not get smaller stay as they are.

    >>> from kogata import only
    >>> from kogata.methods import AdaptiveFastfood
    >>> from kogata.testing.models import job_of
    >>> job = only(AdaptiveFastfood(rounds=2), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'fastfood'
    """

    rounds: Count = 5
    residual: ResidualCount = 0

    ABOUT = About(
        name="fastfood",
        family=projection.FAMILY,
        summary="a product of learnt diagonals and fixed Hadamard transforms",
        paper="Yang et al. 2015, arXiv 1412.7149",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The method if it fits; it has one size for each shape. None also where it would take long to fit."""
        held = sum(count * length for count, length in sizes(shape))
        fits = held <= fraction * math.prod(shape) and math.prod(shape[1:]) <= LARGEST
        return cls() if fits else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The diagonals of each block, and the correction; refused where they are no smaller than the weight."""
        rows_OI = projection.matrix(weight, site)
        (stretches, size), *_ = wanted = sizes(rows_OI.shape)
        if size**2 > MAX_ENTRIES:
            raise NotApplicable(f"a Hadamard matrix for {rows_OI.shape[1]} inputs has more than {MAX_ENTRIES} entries")
        held = sum(count * length for count, length in wanted)
        refuse_unless_fewer(held, weight, f"{stretches} stretches of {size} outputs")
        seed = zlib.crc32(site.name.encode())
        drawn = np.random.PCG64(seed).random_raw(held) & np.uint64(1)
        signs = torch.from_numpy(1 - 2 * drawn.astype(np.float32)).split([count * length for count, length in wanted])
        parts = [sign.reshape(shape) for sign, shape in zip(signs, wanted, strict=True)]
        orders = permutations(stretches, size, seed)
        for stretch, rows in enumerate(rows_OI.split(size)):
            fit([part[stretch] for part in parts], rows, orders[stretch], self.rounds)
        form = Fastfood.of(parts, seed, weight.shape)
        return projection.finished(form, weight, self.residual, f"{stretches} stretches of {size} outputs")


def fit(diagonals: list[Tensor], rows_OI: Tensor, order_N: Tensor, rounds: int) -> None:
    """Alternate over s ``[N]``, g ``[N]`` and b ``[I]``, in place; O may be less than N."""
    s_N, g_N, b_I = diagonals
    outputs, inputs = rows_OI.shape
    h_NN = hadamard(len(order_N), rows_OI.dtype)
    left_ON, right_NI = h_NN[:outputs], h_NN[order_N, :inputs]
    for _ in range(rounds):
        product_OI = left_ON @ (g_N[:, None] * right_NI)
        s_N[:outputs] = _ratio(rows_OI, product_OI * b_I, 1)
        b_I[:] = _ratio(rows_OI, s_N[:outputs, None] * product_OI, 0)
        u_ON, v_NI = s_N[:outputs, None] * left_ON, right_NI * b_I
        gram_NN = ((u_ON.T @ u_ON) * (v_NI @ v_NI.T)).double()
        gram_NN.diagonal().add_(RIDGE * gram_NN.diagonal().mean() + 1e-30)
        target_N = ((u_ON.T @ rows_OI) * v_NI).sum(1).double()
        g_N[:] = torch.linalg.solve(gram_NN, target_N).to(g_N.dtype)


def _ratio(rows_OI: Tensor, basis_OI: Tensor, axis: int) -> Tensor:
    """The least-squares factor for each row (axis 1) or column (axis 0) of the basis; 0 where the basis is 0."""
    return (rows_OI * basis_OI).sum(axis) / basis_OI.square().sum(axis).clamp_min(1e-30)

"""AdaRound: learn to round each weight up or down so that the layer's outputs change least.

Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020
(2004.10568), equations 20 to 24:
    min over V of ‖X (W − Ŵ)ᵀ‖² + λ Σ 1 − |2h(V) − 1|^β,   Ŵ = s clip(⌊W / s⌋ + h(V)),
    h(V) = clip(σ(V) (ζ − γ) + γ, 0, 1),  ζ = 1.1,  γ = −0.1,
where β falls during the optimization, which drives each h to 0 or 1. The first term is tr Δ G Δᵀ with G = XᵀX, so the inputs
need not be stored. For each row it is divided by the error of rounding to nearest, and λ by the number of weights in the row,
so that one λ suits all layers. A row keeps rounding to nearest where that has the smaller error.

Three refinements of the paper are left out. X are the inputs that the rounded layers before it give, on both sides of the
error; its asymmetric reconstruction (equation 25) compares with the outputs for the original inputs. The activation function
behind the layer is not part of the error. The grid spans the smallest to the largest weight of a group, and is not chosen by
its squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Affine, Dense, Form, Latent, Role
from kogata.forms.affine import as_rows, index_dtype
from kogata.job import Kind, Site
from kogata.methods.base.guards import Bits, Count, Group
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.quantization.round_to_nearest import RoundToNearest

RATE = 3e-2
REGULARIZER = 3.0  # λ times the number of weights in a row
WARM = 0.2  # fraction of the steps, at the start, without the regularizer
SHARP = (20.0, 2.0)  # β at the first and at the last regularized step
STRETCH, SHIFT = 1.2, -0.1  # ζ − γ and γ


@final
@dataclass(frozen=True, kw_only=True)
class AdaRound(WeightMethod):
    """Quantize weights to ``bits`` (1 to 8) with a rounding learnt in ``iterations`` steps of Adam, at least 1.

    ``group`` consecutive weights of a row share a scale and a zero point; None means the whole row (per-channel). Weights whose
    inputs cannot be seen stay as they are. It is a simplification of the paper: without its asymmetric target, without the
    activation function in the error, and with the grid of the weights' range.

    >>> from kogata import only
    >>> from kogata.methods import AdaRound
    >>> from kogata.testing.models import job_of
    >>> job = only(AdaRound(bits=4, iterations=1), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'affine'
    """

    bits: Bits
    group: Group = None
    iterations: Count = 1000

    ABOUT = About(
        name="adaround",
        family="quantization",
        summary="n-bit codes, with rounding learnt to preserve the outputs of each layer",
        paper="Nagel et al. 2020, arXiv 2004.10568",
        layers=(Kind.LINEAR, Kind.CONV),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.SCALE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The most bits that leave room for the scale and the zero point of each row."""
        bits = sizes.bits(shape, fraction)
        return None if bits is None else cls(bits=bits)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The codes after the optimization."""
        gram_GII = stats.gram_GII
        if gram_GII is None:
            raise NotApplicable(stats.unseen)
        if gram_GII.shape[1] != weight[0].numel():
            raise NotApplicable("its inputs could not be matched to the columns of this weight")
        rounding = Rounding(Dense(weight, Role.MATRIX), bits=self.bits, group=self.group)
        with torch.enable_grad():
            _descend(rounding, weight, gram_GII, self.iterations)
        learnt, nearest = rounding.freeze(), rounding.nearest
        with torch.no_grad():
            worse_O = _errors(learnt.dense() - weight, gram_GII) > _errors(nearest.dense() - weight, gram_GII)
            codes = torch.where(worse_O[:, None], as_rows(nearest.code), as_rows(learnt.code)).reshape(weight.shape)
        return Affine(codes, learnt.scale, learnt.zero, bits=self.bits, group=learnt.group)


class Rounding(Latent):
    """A weight rounded down plus the trained h, so between its two nearest codes. At the end h is 0 or 1."""

    down: Tensor  # codes as floats, [rows, columns]
    scale: Tensor  # [rows, columns]

    def __init__(self, leaf: Dense, *, bits: int, group: int | None) -> None:
        weight = leaf.values.detach()
        width = min(group or as_rows(weight).shape[1], as_rows(weight).shape[1])
        scale, zero = RoundToNearest(bits=bits, group=group).grid(weight, width)
        nearest = Affine.of(weight, scale, zero, bits=bits, group=width)
        rows_OI = as_rows(weight)
        scale_OI, zero_OI = (
            part.detach().repeat_interleave(nearest.group, 1)[:, : rows_OI.shape[1]].to(weight.dtype)
            for part in (nearest.scale.dense(), nearest.zero)
        )
        steps_OI = rows_OI / scale_OI + zero_OI
        up_OI = ((steps_OI - steps_OI.floor()).clamp(0.01, 0.99) - SHIFT) / STRETCH
        super().__init__(Dense(up_OI.logit().reshape(weight.shape), leaf.role))
        self.top, self.nearest = 2**bits - 1, nearest
        for name, tensor in (("down", steps_OI.floor()), ("scale", scale_OI), ("zero", zero_OI)):
            self.register_buffer(name, tensor)

    def up(self) -> Tensor:
        """h, ``[rows, columns]``, in [0, 1]."""
        return (as_rows(self.values.dense()).sigmoid() * STRETCH + SHIFT).clamp(0, 1)

    def dense(self) -> Tensor:
        """The weight for the current, continuous h."""
        return (((self.down + self.up()).clamp(0, self.top) - self.get_buffer("zero")) * self.scale).reshape(self.shape)

    def penalty(self, progress: float) -> Tensor:
        """λ Σ 1 − |2h − 1|^β, summed over all rows. ``progress`` is the fraction of the steps done; it determines β."""
        if progress < WARM:
            return self.down.new_zeros(())
        falling = (1 + math.cos(math.pi * (progress - WARM) / (1 - WARM))) / 2
        sharpness = SHARP[1] + (SHARP[0] - SHARP[1]) * falling
        return REGULARIZER * (1 - (2 * self.up() - 1).abs() ** sharpness).mean(1).sum()

    def freeze(self) -> Affine:
        """The weight rounded up where h is at least ½, and down elsewhere."""
        with torch.no_grad():
            codes = (self.down + (self.up() >= 0.5)).clamp(0, self.top)
        kept = self.nearest
        return Affine(
            codes.to(index_dtype(self.top + 1)).reshape(self.shape), kept.scale, kept.zero, bits=kept.bits, group=kept.group
        )


def _descend(rounding: Rounding, weight: Tensor, gram_GII: Tensor, iterations: int) -> None:
    """Optimize the rounding of one layer, in place."""
    with torch.no_grad():
        base_O = _errors(rounding.nearest.dense() - weight, gram_GII)
    base_O = base_O.where(base_O > 0, 1.0)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=RATE)
    for step in range(iterations):
        error = (_errors(rounding.dense() - weight, gram_GII) / base_O).sum()
        optimizer.zero_grad()
        (error + rounding.penalty(step / iterations)).backward()
        optimizer.step()


def _errors(change: Tensor, gram_GII: Tensor) -> Tensor:
    """δ G δᵀ for each row δ of ``change``, ``[O]``."""
    change_GOI = as_rows(change).reshape(len(gram_GII), -1, gram_GII.shape[1])
    return ((change_GOI @ gram_GII) * change_GOI).sum(2).flatten()

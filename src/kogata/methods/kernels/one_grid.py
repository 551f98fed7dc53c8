"""Rounding with error compensation on one uniform grid for a whole leaf, with codes of any size that are entropy coded.

The output error of a code c in column j is R_jj² (target − step · c)², with R_jj² = 1 / [H⁻¹]_jj the cost of an error that the
later columns make up for (``kernels/obq.py``). With a price for bits, each code minimizes, in units of step² · mean R²,
    R_jj² / mean R² · (target / step − c)² + λ · bits(c),   bits(c) = −log2 p(c),
p being the histogram of the codes of the pass before (Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", 1989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kogata.forms import Affine, Dense, Role
from kogata.forms.affine import MAX_BITS, as_rows
from kogata.forms.base import index_dtype
from kogata.methods.kernels import obq
from kogata.methods.kernels.compensated import RoundedLayer, factors_of

MOST = 2 ** (MAX_BITS - 1) - 1  # largest code
PASSES = 2  # over the columns, where bits have a price: the second one with the histogram of the first
UNSEEN = 0.1  # how often a code that does not occur counts


@dataclass(frozen=True, kw_only=True)
class OneGrid:
    """A layer with its factored Gram matrix. ``cost`` is the mean of R_jj² over its columns: an output error per step²."""

    layer: RoundedLayer
    orders: list[Tensor]
    factors: list[tuple[Tensor, Tensor]]
    cost: float

    @classmethod
    def of(cls, layer: RoundedLayer) -> Self:
        """Factor the Gram matrices."""
        orders, factors = factors_of(layer)
        cost = float(torch.stack([pivot_I.double().mean() for _, pivot_I in factors]).mean())
        return cls(layer=layer, orders=orders, factors=factors, cost=cost)

    def sampled(self, entries: int) -> OneGrid:
        """The same for evenly spaced rows of evenly spaced groups, about as many as have so many entries."""
        groups, rows, columns = self.layer.weight_GOI.shape
        some = min(groups, max(1, entries // columns))
        each = min(rows, max(1, entries // (some * columns)))
        g, o = torch.arange(some) * groups // some, torch.arange(each) * rows // each
        layer = RoundedLayer(
            weight_GOI=self.layer.weight_GOI[g][:, o], gram_GII=self.layer.gram_GII[g], kept_GOI=self.layer.kept_GOI[g][:, o],
            position=None,
        )  # fmt: skip
        orders, factors = [self.orders[n] for n in g.tolist()], [self.factors[n] for n in g.tolist()]
        return OneGrid(layer=layer, orders=orders, factors=factors, cost=self.cost)

    def codes(self, step: float, rate: float) -> Tensor:
        """Codes ``[G, O, I]`` (float32) for multiples of ``step``; ``rate`` is λ, the price of a bit.

        Without a price this is plain Optimal Brain Quantization in one pass.
        """
        if not rate:
            return self._rounded(step, torch.zeros(2 * MOST + 1))
        code_GOI = (self.layer.weight_GOI / step).round_().clamp_(-MOST, MOST)
        most = min(MOST, 2 * int(code_GOI.abs().max()) + 8)  # errors of earlier columns make some codes larger
        for _ in range(PASSES):
            code_GOI = self._rounded(step, rate * self._bits(code_GOI.clamp_(-most, most), most))
        return code_GOI

    def form(self, code_GOI: Tensor, step: Tensor, shape: torch.Size) -> Affine:
        """The codes of the leaf, of ``shape``, with the one scale ``step``."""
        code = self.layer.rows(code_GOI).to(torch.int32).reshape(shape)
        low = min(int(code.min()), 0)
        bits = max(1, (max(int(code.max()), 0) - low).bit_length())
        dtype = index_dtype(2**bits)
        zero = torch.full((1, 1), -low, dtype=dtype)
        scale = Dense(step.float().reshape(1, 1), Role.SCALE)
        return Affine((code - low).to(dtype), scale, zero, bits=bits, group=as_rows(code).shape[1])

    def _rounded(self, step: float, price: Tensor) -> Tensor:
        code_GOI = torch.empty_like(self.layer.weight_GOI)
        for g, (order_I, (transfer_II, pivot_I)) in enumerate(zip(self.orders, self.factors, strict=True)):
            weight_OI, kept_OI = (part[g][:, order_I].contiguous() for part in (self.layer.weight_GOI, self.layer.kept_GOI))
            found_OI = obq.priced(weight_OI, transfer_II, pivot_I / self.cost, kept_OI, step, price)
            code_GOI[g] = found_OI[:, order_I.argsort()]
        return code_GOI

    def _bits(self, code_GOI: Tensor, most: int) -> Tensor:
        """The bits of each code from −most to most, by how often the kept entries have it."""
        kept = code_GOI[self.layer.kept_GOI].long() + most
        counts = torch.bincount(kept, minlength=2 * most + 1).float() + UNSEEN
        return -(counts / counts.sum()).log2()

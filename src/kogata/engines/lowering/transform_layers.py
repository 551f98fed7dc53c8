"""Linear layers that multiply by a structured matrix with Fourier or Hadamard transforms.

There are three layers for circulant matrices, because engines differ in which operations are fast. PyTorch multiplies spectra
or calls the compiled circular product. An engine with a slow FFT multiplies small blocks by cosines and sines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.engines.lowering.costs import Costs
from kogata.engines.lowering.structured_layers import Structured, fixed
from kogata.forms.hadamard import hadamard_factors, transformed

if TYPE_CHECKING:
    from kogata.engines.lowering.circular import CircularProduct


@final
class CirculantLinear(Structured):
    """``y = C (D x)`` by FFT, with circulant blocks ``C(base[p, q])`` of size b, base ``[P, Q, b]``, and signs D ``[I]``.

    If b is a power of two, small batches on a CPU with one block or many blocks use the compiled circular product.
    """

    spectrum: Tensor

    def __init__(self, layer: nn.Linear, base_PQB: Tensor, sign_I: Tensor, costs: Costs) -> None:
        super().__init__(layer)
        self.base, self.sign = fixed(base_PQB), fixed(sign_I.to(base_PQB))
        self.blocks, self.block = base_PQB.shape[:2], base_PQB.shape[2]
        self.single = tuple(self.blocks) == (1, 1)
        self.rows = costs.kernel_rows
        self.compiled = self.block.bit_count() == 1 and (self.single or min(self.blocks) >= costs.kernel_blocks)
        spectrum = torch.fft.rfft(base_PQB)
        spectrum = spectrum.flatten() if self.single else spectrum.permute(2, 0, 1).contiguous()
        self.register_buffer("spectrum", spectrum, persistent=False)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        if self.compiled and len(x_NI) <= self.rows and self._plain(x_NI):
            return torch.from_numpy(self._kernel(x_NI.contiguous().numpy()))
        x_NJ = signed(x_NI, self.sign, self.blocks[1] * self.block)
        if self.single:
            return torch.fft.irfft(torch.fft.rfft(x_NJ) * self.spectrum, n=self.block)
        x_NQF = torch.fft.rfft(x_NJ.reshape(-1, self.blocks[1], self.block))
        y_FPN = torch.bmm(self.spectrum, x_NQF.permute(2, 1, 0))  # one matrix product [P, Q] for each frequency
        return torch.fft.irfft(y_FPN.permute(2, 1, 0), n=self.block).flatten(1)

    @cached_property
    def _kernel(self) -> CircularProduct:
        """The compiled product, made at first use because a layer that is only exported does not need it."""
        from kogata.engines.lowering.circular import CircularProduct  # numba takes long to import

        return CircularProduct(self.base.detach().cpu().numpy(), self.sign.detach().cpu().numpy())

    def _plain(self, x_NI: Tensor) -> bool:
        """Whether the compiled product supports this input: on the CPU, of the layer's dtype, without gradients or tracing."""
        recorded = x_NI.requires_grad and torch.is_grad_enabled()
        return x_NI.is_cpu and x_NI.dtype is self.base.dtype and not recorded and not torch.compiler.is_compiling()


@final
class FourierCirculantLinear(Structured):
    """Like :class:`CirculantLinear` for a single block; the spectrum is computed from the stored numbers at each call."""

    def __init__(self, layer: nn.Linear, base_PQB: Tensor, sign_I: Tensor) -> None:
        super().__init__(layer)
        self.base, self.sign = fixed(base_PQB), fixed(sign_I.to(base_PQB))

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        spectrum_F, block = torch.fft.rfft(self.base.flatten()), self.base.shape[2]
        return torch.fft.irfft(torch.fft.rfft(signed(x_NI, self.sign, block)) * spectrum_F, n=block)


@final
class CosineCirculantLinear(Structured):
    """Like :class:`CirculantLinear` with real products only: Fourier transforms are products with cosines and sines."""

    def __init__(self, layer: nn.Linear, base_PQB: Tensor, sign_I: Tensor) -> None:
        super().__init__(layer)
        self.base, self.sign = fixed(base_PQB), fixed(sign_I.to(base_PQB))
        self.across, self.block = base_PQB.shape[1:]

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`; each complex product (a + ib)(c + id) is four real ones."""
        cosine_BF, sine_BF = self._waves()
        real, imaginary = ((self.base @ wave).permute(2, 0, 1) for wave in (cosine_BF, sine_BF))  # [F, P, Q]
        x_NQB = signed(x_NI, self.sign, self.across * self.block).reshape(-1, self.across, self.block)
        c, s = ((x_NQB @ wave).permute(2, 1, 0) for wave in (cosine_BF, sine_BF))  # [F, Q, N]
        even, odd = real @ c - imaginary @ s, real @ s + imaginary @ c  # [F, P, N]
        weight_F = self._multiplicity() / self.block
        y_NPB = (even.permute(2, 1, 0) * weight_F) @ cosine_BF.T + (odd.permute(2, 1, 0) * weight_F) @ sine_BF.T
        return y_NPB.flatten(1)

    def _waves(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of 2πjf/b, ``[b, F]``. The product jf is reduced modulo b as an integer, for accuracy."""
        step = torch.arange(self.block)[:, None] * torch.arange(self.block // 2 + 1) % self.block
        angle = step.to(self.base.dtype) * (2 * math.pi / self.block)
        return angle.cos(), angle.sin()

    def _multiplicity(self) -> Tensor:
        """How often each frequency of the half spectrum occurs in the full one: ``[F]``."""
        frequency = torch.arange(self.block // 2 + 1)
        return 2 - ((frequency == 0) | (2 * frequency == self.block)).to(self.base.dtype)


def signed(x_NI: Tensor, sign_I: Tensor, width: int) -> Tensor:
    """``D x`` for each row, padded with zeros to ``[N, width]``."""
    signed_NI = x_NI * sign_I
    return functional.pad(signed_NI, (0, width - len(sign_I))) if width > len(sign_I) else signed_NI


@final
class DisplacementLinear(Structured):
    """``Σ_r Z₁(g_r) Z₋₁(h_r)``, g and h ``[R, n]``, by Fourier transforms."""

    spectrum: Tensor
    skewed: Tensor
    twist: Tensor

    def __init__(self, layer: nn.Linear, g_RN: Tensor, h_RN: Tensor) -> None:
        super().__init__(layer)
        self.size = g_RN.shape[1]
        angle_N = torch.arange(self.size, dtype=torch.float64) * (math.pi / self.size)
        twist_N = torch.polar(torch.ones_like(angle_N), angle_N)
        complex_dtype = torch.complex64 if g_RN.dtype == torch.float32 else torch.complex128
        self.register_buffer("twist", twist_N.to(complex_dtype), persistent=False)
        self.register_buffer("skewed", torch.fft.fft(h_RN * twist_N).to(complex_dtype), persistent=False)
        self.register_buffer("spectrum", torch.fft.rfft(g_RN), persistent=False)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        x_N1F = torch.fft.fft(functional.pad(x_NI, (0, self.size - self.inputs)) * self.twist)[:, None]
        inner_NRJ = (torch.fft.ifft(x_N1F * self.skewed) * self.twist.conj()).real
        return torch.fft.irfft((torch.fft.rfft(inner_NRJ) * self.spectrum).sum(1), n=self.size)


@final
class FastfoodLinear(Structured):
    """``S H G Π H B`` for each of Q blocks of n outputs; H is applied as two products with smaller Hadamard matrices.

    S ``[Q, n]``, G ``[Q, n]``, B ``[Q, I]``, Π as indices ``[Q, n]``.
    """

    order: Tensor
    small: Tensor
    large: Tensor

    def __init__(self, layer: nn.Linear, diagonals: Sequence[Tensor], order_QN: Tensor) -> None:
        super().__init__(layer)
        self.s, self.g, self.b = map(fixed, diagonals)
        self.size = order_QN.shape[1]
        offsets = torch.arange(len(order_QN))[:, None] * self.size
        large, small = hadamard_factors(self.size, self.g.dtype)
        self.register_buffer("order", (order_QN + offsets).flatten(), persistent=False)
        self.register_buffer("large", large, persistent=False)
        self.register_buffer("small", small, persistent=False)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        x_NQI = functional.pad(x_NI[:, None] * self.b, (0, self.size - self.inputs))
        spread = transformed(x_NQI, self.large, self.small).flatten(1)
        mixed_NQn = spread[:, self.order].reshape(-1, len(self.g), self.size)
        return (transformed(mixed_NQn * self.g, self.large, self.small) * self.s).flatten(1)

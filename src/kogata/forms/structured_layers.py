"""Linear layers that multiply by a structured matrix faster than by the dense one.

Each keeps the numbers that the file stores and, for PyTorch, what follows from them, computed once. While the model is being
exported the layer computes it within the graph instead, which then holds only numbers that the file's forms regenerate. What
is fast in PyTorch need not be so in ONNX Runtime, which has a slow Fourier transform: there short ones are multiplications by
cosines and sines, and where none pays the layer keeps its dense weight for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.forms.hadamard import hadamard_factors, transformed
from kogata.forms.layers import kind_of

if TYPE_CHECKING:
    from kogata.engines.lowering.circular import CircularProduct

SMALLEST = 1 << 16  # entries of a matrix below which a chain of operations costs more in overhead than a dense product
TRANSFORMED = 1 << 18  # the same where the chain is of Fourier or Hadamard transforms
GAIN = 3  # times fewer products than dense that small batched products have to be, being slower for each
SHORTEST = 16  # length of a transform below which blocks are no cheaper
COSINES = 256  # longest transform that is cheaper as a product with cosines in ONNX Runtime
TRANSFORMS = 4096  # shortest one, of a power of two, that its own operator pays for
BESIDE = 8  # blocks down and across from which our kernel, which runs along them, is faster than the transforms of PyTorch
ROWS = 4  # inputs at once above which the transforms of PyTorch, which plan at each call, are faster than our kernel


def lowers(layer: nn.Module, least: int) -> bool:
    """Whether a layer is a linear one, of at least so many entries, in a precision that all operations here have."""
    if kind_of(layer) is not nn.Linear or not isinstance(layer, nn.Linear):
        return False
    dtype = layer.weight.dtype
    return layer.out_features * layer.in_features >= least and dtype in (torch.float32, torch.float64)


def fewer(products: int, layer: nn.Linear) -> bool:
    """Whether small batched products pay."""
    return GAIN * products <= layer.out_features * layer.in_features


def fixed(values: Tensor) -> nn.Parameter:
    """A weight of a layer that is not trained any more."""
    return nn.Parameter(values.detach().contiguous(), requires_grad=False)


class Structured(nn.Module, ABC):
    """Inputs ``[..., I]`` to outputs ``[..., O]``; all axes but the last are a batch."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = layer.out_features, layer.in_features
        bias = cast("Tensor | None", layer.bias)
        self.register_parameter("bias", None if bias is None else fixed(bias))

    @abstractmethod
    def multiply(self, x_NI: Tensor) -> Tensor:
        """The product ``[N, at least O]`` without the bias; what is past O is cropped."""

    @final
    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        y = self.multiply(x if x.ndim == 2 else x.reshape(-1, self.inputs))
        y = y if y.shape[1] == self.outputs else y[:, : self.outputs]
        y = y if self.bias is None else y + self.bias
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.outputs)


@final
class CirculantLinear(Structured):
    """Blocks ``C(base[p, q])`` of size b, ``y = C (D x)``; base ``[P, Q, b]``, signs D ``[I]``.

    PyTorch multiplies spectra, or on a processor, for few inputs and one or many blocks of a power of two, our own kernel does.
    In ONNX Runtime, blocks up to ``COSINES`` become products with cosines and sines, one block of at least ``TRANSFORMS`` and a
    power of two its DFT operators, all others a dense layer.
    """

    weight: Tensor | None
    spectrum: Tensor

    def __init__(self, layer: nn.Linear, base_PQB: Tensor, sign_I: Tensor) -> None:
        super().__init__(layer)
        self.base, self.sign = fixed(base_PQB), fixed(sign_I.to(base_PQB.dtype))
        self.blocks, self.block = base_PQB.shape[:2], base_PQB.shape[2]
        self.padding = self.blocks[1] * self.block - self.inputs
        self.single = tuple(self.blocks) == (1, 1)
        halving = self.block.bit_count() == 1
        self.compiled = halving and (self.single or min(self.blocks) >= BESIDE)
        transforms = self.single and halving and self.block >= TRANSFORMS
        self.register_buffer("weight", None if self.block <= COSINES or transforms else self._matrix(), persistent=False)
        spectrum = torch.fft.rfft(base_PQB)
        spectrum = spectrum.flatten() if self.single else spectrum.permute(2, 0, 1).contiguous()
        self.register_buffer("spectrum", spectrum, persistent=False)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        if not torch.compiler.is_exporting():
            if self.compiled and len(x_NI) <= ROWS and self._plain(x_NI):
                return torch.from_numpy(self._kernel(x_NI.contiguous().numpy()))
            return self._convolved(x_NI, self.spectrum) if self.single else self._spectra(x_NI)
        if self.block <= COSINES:
            return self._cosines(x_NI)
        if self.weight is None:
            return self._convolved(x_NI, torch.fft.rfft(self.base.flatten()))
        return functional.linear(x_NI, self.weight)

    @cached_property
    def _kernel(self) -> CircularProduct:
        """Made at first use: a layer that is only exported needs none."""
        from kogata.engines.lowering.circular import CircularProduct  # numba takes long to import

        return CircularProduct(self.base.detach().cpu().numpy(), self.sign.detach().cpu().numpy())

    def _plain(self, x_NI: Tensor) -> bool:
        """Whether compiled code may read these numbers: it records no gradients, and knows one precision and no device."""
        recorded = x_NI.requires_grad and torch.is_grad_enabled()
        return x_NI.is_cpu and x_NI.dtype is self.base.dtype and not recorded and not torch.compiler.is_compiling()

    def _split(self, x_NI: Tensor) -> Tensor:
        """``[N, Q, b]``."""
        return self._padded(x_NI).reshape(-1, self.blocks[1], self.block)

    def _padded(self, x_NI: Tensor) -> Tensor:
        """``[N, Q b]``, signed."""
        signed_NI = x_NI * self.sign
        return functional.pad(signed_NI, (0, self.padding)) if self.padding else signed_NI

    def _convolved(self, x_NI: Tensor, spectrum_F: Tensor) -> Tensor:
        """By one block."""
        return torch.fft.irfft(torch.fft.rfft(self._padded(x_NI)) * spectrum_F, n=self.block)

    def _spectra(self, x_NI: Tensor) -> Tensor:
        """Frequency by frequency, a matrix of blocks."""
        x_NQF = torch.fft.rfft(self._split(x_NI))
        y_FPN = torch.bmm(self.spectrum, x_NQF.permute(2, 1, 0))
        return torch.fft.irfft(y_FPN.permute(2, 1, 0), n=self.block).flatten(1)

    def _cosines(self, x_NI: Tensor) -> Tensor:
        """The same with real numbers: (a + ib)(c + id) by four products."""
        cosine_BF, sine_BF = self._waves()
        real, imaginary = ((self.base @ wave).permute(2, 0, 1) for wave in (cosine_BF, sine_BF))  # [F, P, Q]
        x_NQB = self._split(x_NI)
        c, s = ((x_NQB @ wave).permute(2, 1, 0) for wave in (cosine_BF, sine_BF))  # [F, Q, N]
        even, odd = real @ c - imaginary @ s, real @ s + imaginary @ c  # [F, P, N]
        weight_F = self._multiplicity() / self.block
        y_NPB = (even.permute(2, 1, 0) * weight_F) @ cosine_BF.T + (odd.permute(2, 1, 0) * weight_F) @ sine_BF.T
        return y_NPB.flatten(1)

    def _waves(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of 2πjf/b, ``[b, F]``; angles are reduced as whole numbers."""
        step = torch.arange(self.block)[:, None] * torch.arange(self.block // 2 + 1) % self.block
        angle = step.to(self.base.dtype) * (2 * math.pi / self.block)
        return angle.cos(), angle.sin()

    def _multiplicity(self) -> Tensor:
        """How often a frequency of the half spectrum stands in the whole one: ``[F]``."""
        frequency = torch.arange(self.block // 2 + 1)
        return 2 - ((frequency == 0) | (2 * frequency == self.block)).to(self.base.dtype)

    def _matrix(self) -> Tensor:
        rows, columns = torch.arange(self.outputs)[:, None], torch.arange(self.inputs)
        block = rows // self.block * self.blocks[1] + columns // self.block
        return self.base.flatten()[block * self.block + (rows - columns) % self.block] * self.sign


@final
class DisplacementLinear(Structured):
    """``Σ_r Z₁(g_r) Z₋₁(h_r)``, g and h ``[R, n]``, by Fourier transforms; dense in ONNX Runtime, where these do not pay."""

    weight: Tensor
    spectrum: Tensor
    skewed: Tensor
    twist: Tensor

    def __init__(self, layer: nn.Linear, weight_OI: Tensor, g_RN: Tensor, h_RN: Tensor) -> None:
        super().__init__(layer)
        self.size = g_RN.shape[1]
        self.register_buffer("weight", weight_OI, persistent=False)
        angle_N = torch.arange(self.size, dtype=torch.float64) * (math.pi / self.size)
        twist_N = torch.polar(torch.ones_like(angle_N), angle_N)
        complex_dtype = torch.complex64 if g_RN.dtype == torch.float32 else torch.complex128
        self.register_buffer("twist", twist_N.to(complex_dtype), persistent=False)
        self.register_buffer("skewed", torch.fft.fft(h_RN * twist_N).to(complex_dtype), persistent=False)
        self.register_buffer("spectrum", torch.fft.rfft(g_RN), persistent=False)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        if torch.compiler.is_exporting():
            return functional.linear(x_NI, self.weight)
        x_N1F = torch.fft.fft(functional.pad(x_NI, (0, self.size - self.inputs)) * self.twist)[:, None]
        inner_NRJ = (torch.fft.ifft(x_N1F * self.skewed) * self.twist.conj()).real
        return torch.fft.irfft((torch.fft.rfft(inner_NRJ) * self.spectrum).sum(1), n=self.size)


@final
class FastfoodLinear(Structured):
    """``S H G Π H B`` for each of Q stretches of n outputs; H by two products with smaller Hadamard matrices, everywhere.

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


@final
class BlockDiagonalLinear(Structured):
    """Blocks ``[b, rows, columns]`` down the diagonal: one batched product."""

    def __init__(self, layer: nn.Linear, blocks_BOI: Tensor) -> None:
        super().__init__(layer)
        self.weight = fixed(blocks_BOI)
        self.padding = len(blocks_BOI) * blocks_BOI.shape[2] - self.inputs

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        x_NBI = functional.pad(x_NI, (0, self.padding)).reshape(-1, len(self.weight), self.weight.shape[2])
        return torch.bmm(self.weight, x_NBI.permute(1, 2, 0)).permute(2, 0, 1).flatten(1)


@final
class MonarchLinear(Structured):
    """``W[(l, j), (k, i)] = Σ_r left[j, l, k, r] right[k, j, r, i]``: two batched products with a shuffle between them."""

    def __init__(self, layer: nn.Linear, left_JLKR: Tensor, right_KJRI: Tensor) -> None:
        super().__init__(layer)
        self.left, self.right = fixed(left_JLKR), fixed(right_KJRI)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        return monarch(x_NI, self.left, self.right)


def monarch(x_NI: Tensor, left_JLKR: Tensor, right_KJRI: Tensor) -> Tensor:
    """The product ``[N, O]`` of :class:`MonarchLinear`."""
    x_KIN = x_NI.reshape(-1, len(right_KJRI), right_KJRI.shape[3]).permute(1, 2, 0)
    inner_KJRN = torch.bmm(right_KJRI.flatten(1, 2), x_KIN).unflatten(1, right_KJRI.shape[1:3])
    y_JLN = torch.bmm(left_JLKR.flatten(2), inner_KJRN.transpose(0, 1).flatten(1, 2))
    return y_JLN.permute(2, 1, 0).flatten(1)


@final
class ButterflyLinear(Structured):
    """A product of many sparse factors, multiplied out into the two of a Monarch matrix.

    Two batched products of √n wide blocks take less time than log n passes over the memory.
    """

    left: Tensor
    right: Tensor

    def __init__(self, layer: nn.Linear, factors: Sequence[Tensor], equations: tuple[str, str]) -> None:
        super().__init__(layer)
        self.equations, self.early = equations, equations[0].count(",") + 1
        for number, factor in enumerate(factors):
            self.register_parameter(f"factor_{number}", fixed(factor))
        self.count = len(factors)
        left, right = self._halves()
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """The factors of :func:`monarch`, from the equations of :func:`kogata.forms.product.butterfly_halves`."""
        factors = [self.get_parameter(f"factor_{number}") for number in range(self.count)]
        rest = self.count - self.early
        right = torch.einsum(self.equations[0], *factors[: self.early])  # [i past the half, j of it, i of it]
        left = torch.einsum(self.equations[1], *factors[self.early :])  # [j of the half, j past it, i past it]
        right = right.flatten(rest + self.early).flatten(rest, rest + self.early - 1).flatten(0, rest - 1)
        left = left.flatten(self.early + rest).flatten(self.early, self.early + rest - 1).flatten(0, self.early - 1)
        return left[..., None], right[:, :, None]

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        return monarch(x_NI, *(self._halves() if torch.compiler.is_exporting() else (self.left, self.right)))


@final
class KroneckerLinear(Structured):
    """``Σ_r A_r ⊗ B_r``, left ``[a, r, c]``, right ``[r, b, d]``: y = Σ_r A_r X B_rᵀ for the input as a matrix X ``[c, d]``."""

    def __init__(self, layer: nn.Linear, left_ARC: Tensor, right_RBD: Tensor) -> None:
        super().__init__(layer)
        self.left, self.right = fixed(left_ARC), fixed(right_RBD)

    def multiply(self, x_NI: Tensor) -> Tensor:
        """See :class:`Structured`."""
        (_, ranks, c), (_, b, d) = self.left.shape, self.right.shape
        x_NCD = x_NI.reshape(-1, c, d)
        inner = (x_NCD @ self.right.flatten(0, 1).T).reshape(-1, c, ranks, b).transpose(1, 2).reshape(-1, ranks * c, b)
        return (self.left.flatten(1) @ inner).flatten(1)


@final
class Added(nn.Module):
    """The sum of what several layers make of the same input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        first, *others = self.layers
        y = cast("Tensor", first(x))
        for layer in others:
            y = y + layer(x)
        return y

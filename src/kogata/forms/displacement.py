"""Displacement: a Toeplitz-like matrix, the sum of a few products of a circulant and a skew-circulant matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import Dense, Form, width
from kogata.forms.tied import MAX_ENTRIES
from kogata.job import Role


@final
class Displacement(Form):
    """``Σ_r Z₁(g_r) Z₋₁(h_r)``, a matrix of n × n entries cropped to ``[O, I]``, where n is the larger of O and I.

    The generators ``g`` and ``h`` are ``[R, n]`` and trainable. ``Z_f(v)[i, j] = v[(i − j) mod n]``, multiplied by f above the
    diagonal: Z₁ is circulant and Z₋₁ skew-circulant.

    >>> import torch
    >>> from kogata.forms import Displacement
    >>> form = Displacement.of(torch.randn(2, 6), torch.randn(2, 6), (4, 6))
    >>> form.dense().shape, form.kept()
    (torch.Size([4, 6]), 24)
    """

    TAG = "displacement"

    g: Form
    h: Form

    def __init__(self, g: Form, h: Form, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.g, self.h = g, h

    @classmethod
    def of(cls, g_RN: Tensor, h_RN: Tensor, shape: Sequence[int]) -> Self:
        """A form with the two generators as trainable leaves."""
        return cls(Dense(g_RN.contiguous(), Role.MATRIX), Dense(h_RN.contiguous(), Role.MATRIX), shape)

    def dense(self) -> Tensor:
        """The matrix, of ``shape``: the columns of the skew-circulant matrices, circularly convolved with g by FFT."""
        g_RN, h_RN = self.g.dense(), self.h.dense()
        narrow, size = g_RN.dtype, g_RN.shape[1]
        if narrow not in (torch.float32, torch.float64):  # PyTorch has no FFT in half precision on the CPU
            g_RN, h_RN = g_RN.float(), h_RN.float()
        columns = math.prod(self.shape[1:])
        spectra = (torch.fft.rfft(g) * torch.fft.rfft(skew_columns(h, columns)) for g, h in zip(g_RN, h_RN, strict=True))
        matrix_IN = torch.fft.irfft(sum(spectra, start=next(spectra)), n=size)  # one term at a time, to hold no more
        return matrix_IN[:, : self.shape[0]].T.reshape(self.shape).to(narrow)

    def kept(self) -> int:
        """The number of entries of the generators."""
        return self.g.kept() + self.h.kept()

    def planes(self) -> dict[str, Plane]:
        """Empty: the generators store their own planes."""
        return {}

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The columns and the spectra of one term at a time; transforms take about 8 log2 n operations for each entry."""
        shape = checked_shape(header["shape"])
        terms, size = parts["g"].shape[0], max(shape[0], math.prod(shape[1:]))
        entries = math.prod(shape[1:]) * size
        work = 8 * terms * entries * size.bit_length()
        return Cost(keep=width(parts) * entries, scratch=6 * width(parts) * entries, work=work)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the generators and the shape do not fit."""
        shape, g, h = checked_shape(header["shape"], 1), parts["g"], parts["h"]
        if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MAX_ENTRIES or len(g.shape) != 2 or g.shape != h.shape:
            raise ValueError(f"shape {shape} of generators {tuple(g.shape)} and {tuple(h.shape)}")
        if not g.shape[0] or g.shape[1] != max(shape[0], math.prod(shape[1:])):
            raise ValueError(f"generators of {tuple(g.shape)} entries for the shape {shape}")
        return cls(g, h, shape)


def skew_columns(h_N: Tensor, count: int) -> Tensor:
    """The first ``count`` columns of ``Z₋₁(h)``, as the rows of a ``[count, N]`` tensor."""
    size = len(h_N)
    windows = torch.cat([-h_N, h_N]).unfold(0, size, 1)
    return windows[size - count + 1 : size + 1].flip(0)


def displacement(matrix_NN: Tensor) -> Tensor:
    """The displacement ``Z₁ M − M Z₋₁``, where ``Z_f`` shifts rows down by one and moves the last row, times f, to the top."""
    columns = torch.cat([matrix_NN[:, 1:], -matrix_NN[:, :1]], 1)
    return matrix_NN.roll(1, 0) - columns


def padded(matrix_OI: Tensor) -> Tensor:
    """The matrix padded with zeros on its shorter side to a square one."""
    size = max(matrix_OI.shape)
    return functional.pad(matrix_OI, (0, size - matrix_OI.shape[1], 0, size - matrix_OI.shape[0]))

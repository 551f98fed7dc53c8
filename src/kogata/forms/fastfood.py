"""Fastfood: a product S H G Π H B of diagonal matrices, Hadamard transforms and a permutation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import Dense, Form, width
from kogata.forms.hadamard import hadamard, hadamard_factors, transformed
from kogata.forms.tied import MAX_ENTRIES
from kogata.job import Role


@final
class Fastfood(Form):
    """Q blocks of n rows, each ``S H G Π H B``; the last block is cropped to the number of outputs.

    The diagonals ``s`` and ``g`` are ``[Q, n]`` and ``b`` is ``[Q, I]``, all trainable. n is the smallest power of two that is
    at least I, and H is the orthonormal Hadamard matrix. The permutations Π are computed from ``seed`` by sorting the output of
    PCG64, so they are the same on every platform.

    >>> import torch
    >>> from kogata.forms import Fastfood
    >>> form = Fastfood.of([torch.ones(1, 8), torch.randn(1, 8), torch.ones(1, 6)], 0, (4, 6))
    >>> form.dense().shape
    torch.Size([4, 6])
    """

    TAG = "fastfood"

    s: Form
    g: Form
    b: Form
    order: Tensor

    def __init__(self, diagonals: Sequence[Form], seed: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.seed = torch.Size(shape), seed
        self.s, self.g, self.b = diagonals
        (stretches, size), *_ = sizes(shape)
        self.register_buffer("order", permutations(stretches, size, seed), persistent=False)

    @classmethod
    def of(cls, diagonals: Sequence[Tensor], seed: int, shape: Sequence[int]) -> Self:
        """A form with trainable diagonals, given in the order s, g, b."""
        return cls([Dense(diagonal.contiguous(), Role.MATRIX) for diagonal in diagonals], seed, shape)

    def dense(self) -> Tensor:
        """The matrix, of ``shape``. Π H selects rows of H; the outer H transforms each column of G Π H B."""
        s_QN, g_QN, b_QI = self.s.dense(), self.g.dense(), self.b.dense()
        size = s_QN.shape[1]
        large, small = (part.to(s_QN.device) for part in hadamard_factors(size, s_QN.dtype))
        columns_IN = hadamard(size, s_QN.dtype).to(s_QN.device)[: b_QI.shape[1]]
        stretches = [
            (transformed(b[:, None] * columns_IN[:, order] * g, large, small) * s).T
            for s, g, b, order in zip(s_QN, g_QN, b_QI, self.order, strict=True)
        ]
        return torch.cat(stretches)[: self.shape[0]].reshape(self.shape)

    def kept(self) -> int:
        """The number of entries of the diagonals."""
        return sum(part.kept() for part in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Empty: the diagonals store their own planes."""
        return {}

    def header(self) -> dict[str, Any]:
        """The seed of the permutations, and the shape."""
        return {"seed": self.seed, "shape": list(self.shape)}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """A Hadamard matrix, the permutations, and the transforms of one block at a time."""
        (stretches, size), _, (_, columns) = sizes(checked_shape(header["shape"], 1))
        entries, wide = stretches * size * columns, width(parts)
        scratch = wide * (3 * size * size + 5 * size * columns + entries) + 24 * stretches * size
        return Cost(keep=wide * entries, scratch=scratch, work=(16 + 2 * math.isqrt(size)) * entries + 4 * size * size)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the diagonals, the seed and the shape do not fit."""
        shape, seed, diagonals = checked_shape(header["shape"], 1), header["seed"], [parts[name] for name in ("s", "g", "b")]
        if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MAX_ENTRIES:
            raise ValueError(f"shape {shape}")
        if not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"seed {seed!r}, expected a whole number from 0 to below 2**32")
        wanted, found = sizes(shape), [tuple(diagonal.shape) for diagonal in diagonals]
        if found != wanted or wanted[0][1] ** 2 > MAX_ENTRIES:
            raise ValueError(f"diagonals of {found} for the shape {shape}, expected {wanted}")
        return cls(diagonals, seed, shape)


def sizes(shape: Sequence[int]) -> list[tuple[int, int]]:
    """The shapes of s, g and b for a weight of ``shape``.

    >>> sizes((300, 200))
    [(2, 256), (2, 256), (2, 200)]
    """
    columns = math.prod(shape[1:])
    size = 1 << (columns - 1).bit_length()
    stretches = -(-shape[0] // size)
    return [(stretches, size), (stretches, size), (stretches, columns)]


def permutations(count: int, size: int, seed: int) -> Tensor:
    """``count`` pseudo-random permutations of ``size`` elements, int64 ``[count, size]``."""
    drawn = np.random.PCG64(seed).random_raw(count * size).reshape(count, size)
    return torch.from_numpy(np.argsort(drawn, axis=1, kind="stable"))

"""Fastfood: diagonals around Hadamard transforms and a permutation, S H G Π H B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form
from kogata.forms.hadamard import hadamard, hadamard_factors, transformed
from kogata.forms.tied import MAX_ENTRIES
from kogata.job import Role


@final
class Fastfood(Form):
    """Q stretches of n rows, each ``S H G Π H B``: diagonals s and g ``[Q, n]``, b ``[Q, I]``; the last stretch is cropped.

    n is the least power of two that is no smaller than I; H is orthonormal. The permutations Π follow from ``seed``, by
    sorting what PCG64 gives, whose stream is the same everywhere.
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
        """Trainable diagonals, in the order s, g, b."""
        return cls([Dense(diagonal.contiguous(), Role.MATRIX) for diagonal in diagonals], seed, shape)

    def dense(self) -> Tensor:
        """The matrix, of ``shape``: H G Π H B is the transform of each column of G Π H B, and Π H a choice of rows of H."""
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
        """The numbers of the diagonals."""
        return sum(part.kept() for part in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Nothing of its own: the diagonals store themselves."""
        return {}

    def header(self) -> dict[str, Any]:
        """The seed of the permutations, and the shape."""
        return {"seed": self.seed, "shape": list(self.shape)}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the diagonals, the seed and the shape do not fit."""
        shape, seed, diagonals = header["shape"], header["seed"], [parts[name] for name in ("s", "g", "b")]
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
    """So many permutations of ``size`` places, int64 ``[count, size]``."""
    drawn = np.random.PCG64(seed).random_raw(count * size).reshape(count, size)
    return torch.from_numpy(np.argsort(drawn, axis=1, kind="stable"))

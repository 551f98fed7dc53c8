"""Index maps of structured matrices: circulant blocks, and blocks down the diagonal.

A weight is seen as the matrix ``[O, I]`` of its first axis and of all others flattened. Blocks that a side is not a multiple
of run past its end, and what lies there is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from kogata.forms.index_map import IndexMap, whole


@final
@dataclass(frozen=True)
class Circulant(IndexMap):
    """Blocks of ``block`` by ``block`` entries, each ``base[p, q, (o − i) mod block]``; column i has the sign D_i.

    The signs come from PCG64, whose stream is the same everywhere, and from ``seed``.
    """

    TAG = "circulant"

    block: int
    seed: int

    def __post_init__(self) -> None:
        whole("block", self.block, 1)
        whole("seed", self.seed, 0)

    def blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many blocks there are down and across."""
        return -(-shape[0] // self.block), -(-math.prod(shape[1:]) // self.block)

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; the base is ``[P, Q, block]``."""
        down, across = self.blocks(shape)
        if down * across * self.block != size:
            raise ValueError(f"{down} by {across} circulant blocks of {self.block} for a base of {size} entries")
        rows = torch.arange(shape[0], dtype=torch.int32)[:, None]
        columns = torch.arange(math.prod(shape[1:]), dtype=torch.int32)
        first = (rows // self.block * across + columns // self.block) * self.block
        sign = self.signs(len(columns)).expand(shape[0], -1)
        return (first + (rows - columns) % self.block).reshape(tuple(shape)), sign.reshape(tuple(shape))

    def signs(self, count: int) -> Tensor:
        """D as int8."""
        bits = np.random.PCG64(self.seed).random_raw(count) & np.uint64(1)
        return torch.from_numpy(1 - 2 * bits.astype(np.int8))


@final
@dataclass(frozen=True)
class Diagonal(IndexMap):
    """``blocks`` blocks of equal size down the diagonal; the sign of all entries beside them is 0."""

    TAG = "diagonal"

    blocks: int

    def __post_init__(self) -> None:
        whole("blocks", self.blocks, 1)

    def base(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the base: blocks, and rows and columns of each."""
        return self.blocks, -(-shape[0] // self.blocks), -(-math.prod(shape[1:]) // self.blocks)

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`."""
        count, high, wide = self.base(shape)
        if count * high * wide != size:
            raise ValueError(f"{count} blocks of {high} by {wide} for a base of {size} entries")
        rows = torch.arange(shape[0], dtype=torch.int32)[:, None]
        columns = torch.arange(math.prod(shape[1:]), dtype=torch.int32)
        sign = (rows // high == columns // wide).to(torch.int8)
        index = (rows * wide + columns % wide) * sign
        return index.reshape(tuple(shape)), sign.reshape(tuple(shape))


STRUCTURED_MAPS: tuple[type[IndexMap], ...] = (Circulant, Diagonal)

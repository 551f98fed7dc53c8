"""Index maps of structured matrices: circulant blocks, and block-diagonal matrices.

A weight is a matrix ``[O, I]``, with all axes but the first flattened into one. Where the size of a block does not divide a
side, the last blocks extend beyond the end and are cropped.
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
    """Blocks of ``block`` × ``block`` entries, each ``base[p, q, (o − i) mod block]``; column i is multiplied by a sign D_i.

    The signs are computed from ``seed`` by PCG64, so they are the same on every platform.
    """

    TAG = "circulant"

    block: int
    seed: int

    def __post_init__(self) -> None:
        whole("block", self.block, 1)
        whole("seed", self.seed, 0)

    def blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        """The number of blocks along the rows and along the columns."""
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
        """The signs D, int8 ``[count]``."""
        bits = np.random.PCG64(self.seed).random_raw(count) & np.uint64(1)
        return torch.from_numpy(1 - 2 * bits.astype(np.int8))


@final
@dataclass(frozen=True)
class Diagonal(IndexMap):
    """``blocks`` blocks of equal size on the diagonal; entries outside of them have the sign 0."""

    TAG = "diagonal"

    blocks: int

    def __post_init__(self) -> None:
        whole("blocks", self.blocks, 1)

    def base(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the base: the number of blocks, and the rows and columns of each."""
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

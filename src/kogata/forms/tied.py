"""Tied: every entry is plus or minus one entry of a smaller base. An :class:`IndexMap` computes which one.

A map is a frozen dataclass of JSON values. ``MAPS`` lists all of them: to add a transform of filters or a structured matrix,
write one class and list it there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast, final

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import PIECE, Dense, Form, passes
from kogata.forms.filter_maps import FILTER_MAPS
from kogata.forms.index_map import IndexMap, whole
from kogata.forms.structured_maps import STRUCTURED_MAPS
from kogata.job import Role

MAX_ENTRIES = 1 << 28  # largest number of entries of a weight that a file may ask for; each takes five bytes of memory


@final
@dataclass(frozen=True)
class Hash(IndexMap):
    """A pseudo-random map: entry p, in row-major order, gets base entry ``⌊size · h / 2³²⌋``; the last bit of h is its sign.

    ``h = mix(p ⊕ mix(seed))``, where ``mix`` is a bijection of 32-bit integers. A change of any input bit flips each output bit
    with probability ½ (xor-shift-multiply, with Wellons' low-bias constants). Index and sign use opposite ends of h, so they
    are independent for up to 2³¹ entries.
    """

    TAG = "hash"

    seed: int  # in [0, 2**32)

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; any shape fits any base."""
        count, start = math.prod(shape), _mix(np.array([self.seed], np.uint32))
        index, sign = np.empty(count, np.int32), np.empty(count, np.int8)
        for low in range(0, count, PIECE):
            piece = slice(low, min(low + PIECE, count))
            hashed = _mix(np.arange(piece.start, piece.stop, dtype=np.uint32) ^ start)
            index[piece] = (hashed.astype(np.uint64) * np.uint64(size)) >> np.uint64(32)
            sign[piece] = 1 - 2 * (hashed & np.uint32(1)).astype(np.int8)
        return torch.from_numpy(index).reshape(shape), torch.from_numpy(sign).reshape(shape)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint32; arithmetic is modulo 2³²."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


MAPS: tuple[type[IndexMap], ...] = (Hash, *FILTER_MAPS, *STRUCTURED_MAPS)


class Tied(Form):
    """Entry i is ``sign[i] · base[index[i]]``. ``map`` computes index and sign from the shape and the size of the base.

    The base is trainable. The gradient of one of its entries is the signed sum of the gradients of its copies. The base is a
    smaller weight, not a table of centroids, and later steps may prune or quantize it. Its leaf has the role ``values`` where
    it is one-dimensional and ``matrix`` where it has the shape of filters.

    >>> import torch
    >>> from kogata.forms import Tied
    >>> from kogata.forms.filter_maps import Opposite
    >>> Tied.of(Opposite(), torch.tensor([[1.0, 2.0], [-3.0, -2.0]]), (1, 2)).dense().detach()
    tensor([[ 2.,  2.],
            [-2., -2.]])
    """

    TAG = "tied"

    index: Tensor
    sign: Tensor
    base: Form

    def __init__(self, map: IndexMap, base: Form, shape: Sequence[int]) -> None:
        super().__init__()
        self.map, self.shape = map, torch.Size(shape)
        index, sign = map.index(shape, base.shape.numel())
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("sign", sign, persistent=False)
        self.base = base

    @classmethod
    def of(cls, map: IndexMap, weight: Tensor, base: Sequence[int]) -> Self:
        """The least-squares approximation of ``weight`` with a base of shape ``base``.

        Each entry of the base is the signed mean of the entries of ``weight`` that map to it, or 0 if there are none.
        """
        size = math.prod(base)
        index, sign = map.index(weight.shape, size)
        sums = torch.zeros(size, dtype=torch.float64).index_add_(0, index.flatten(), (sign * weight.double()).flatten())
        copies = torch.zeros(size, dtype=torch.float64).index_add_(0, index.flatten(), sign.flatten().double().abs())
        means = sums / copies.clamp_min(1)
        role = Role.VALUES if len(base) == 1 else Role.MATRIX
        return cls(map, Dense(means.to(weight.dtype).reshape(tuple(base)), role), weight.shape)

    def dense(self) -> Tensor:
        """The entries of the base with their signs, of ``shape``."""
        copies = self.base.dense().flatten().index_select(0, self.index.flatten())
        return copies.reshape(self.shape) * self.sign

    def kept(self) -> int:
        """The number of entries that the base stores."""
        return self.base.kept()

    def planes(self) -> dict[str, Plane]:
        """Empty: the map is computed and the base stores its own planes."""
        return {}

    def header(self) -> dict[str, Any]:
        """The map's tag and fields, and the shape."""
        fields = dataclasses.asdict(cast("Any", self.map))
        return {"map": [self.map.TAG, fields], "shape": list(self.shape)}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Index and sign of each entry, the temporary arrays of the map, and the entries of the base that they pick."""
        return passes(math.prod(checked_shape(header["shape"])), parts, extra=48)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError on a map that is unknown or does not fit, or on a shape out of bounds."""
        (name, fields), shape, base = header["map"], checked_shape(header["shape"], 1), parts["base"]
        kinds = {kind.TAG: kind for kind in MAPS}
        if name not in kinds:
            raise ValueError(f"index map {name!r} is none of {', '.join(kinds)}")
        entries = base.shape.numel()
        if not shape or min(shape) < 1 or not 1 <= entries <= math.prod(shape) <= MAX_ENTRIES:
            raise ValueError(f"shape {shape} from a base of {entries} entries")
        return cls(kinds[name](**fields), base, shape)

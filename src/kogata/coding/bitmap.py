"""Bitmaps: one bit per element, least significant first, without any model."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, damaged
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec


class Bitmap(Coder):
    """For masks; the fallback that accepts every mask."""

    name: ClassVar[str] = "bitmap"
    tag: ClassVar[int] = 1

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.MASK

    def encode(self, plane: Plane) -> bytes:
        return np.packbits(plane.array, axis=None, bitorder="little").tobytes()

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        if len(data) != packed_bytes(spec):
            raise damaged(self, spec, f"it holds {len(data)} bytes instead of {packed_bytes(spec)}")
        budget.charge("a bitmap", Cost(scratch=spec.size, work=spec.size))
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=spec.size, bitorder="little")
        return bits.astype(np.bool_).reshape(spec.shape)

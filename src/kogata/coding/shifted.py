"""Integers of a range of at most 65,536 values, stored as symbols: their offsets from the smallest value."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, damaged, decode_tagged, encode_smallest, read_varint, write_varint
from kogata.coding.nested import SYMBOL_CODERS
from kogata.coding.plane import MAX_ALPHABET, Plane, PlaneKind, PlaneSpec

# Zigzag encoding doubles the magnitude, which must stay below 2**63, the limit of a varint.
FARTHEST = 1 << 62


class Shifted(Coder):
    """For integers. Stores the smallest value, the range, and the symbols by the symbol coder with the fewest bytes."""

    name: ClassVar[str] = "shifted symbols"
    tag: ClassVar[int] = 7

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.INTEGERS

    def encode(self, plane: Plane) -> bytes | None:
        if not plane.spec.size:
            return None
        # Python integers, because the range of int64 or uint64 values can overflow both types.
        least, most = int(plane.array.min()), int(plane.array.max())
        alphabet = most - least + 1
        if alphabet > MAX_ALPHABET or not -FARTHEST <= least <= most < FARTHEST:
            return None
        symbols = (plane.array.astype(np.int64) - least).astype(np.uint16)
        _, body = encode_smallest(Plane.symbols(symbols, alphabet), SYMBOL_CODERS)
        return write_varint(_zigzag(least)) + write_varint(alphabet - 1) + body

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        folded, at = read_varint(data, 0)
        least = -(folded + 1) // 2 if folded % 2 else folded // 2
        span, at = read_varint(data, at)
        lowest, highest = (0, 1) if spec.dtype == "bool" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
        if span >= MAX_ALPHABET or least < lowest or least + span > highest:
            raise damaged(self, spec, f"values from {least} to {least + span} do not fit {spec.dtype}")
        budget.charge("shifted symbols", Cost(scratch=20 * spec.size, work=8 * spec.size))
        symbols_spec = PlaneSpec(PlaneKind.SYMBOLS, spec.shape, "uint16", span + 1)
        symbols = decode_tagged(data[at:], symbols_spec, SYMBOL_CODERS, budget)
        # NumPy makes the sum of 0-d arrays a scalar; asarray makes it an array again.
        return np.asarray(symbols.astype(np.int64) + least, spec.array_dtype)


def _zigzag(value: int) -> int:
    """Map signed to unsigned integers, small magnitudes first: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1

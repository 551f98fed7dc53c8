"""Integers that span at most 65,536 values, as symbols above the least of them."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.coder import Coder, damaged, decode_tagged, encode_smallest, read_varint, write_varint
from kogata.coding.nested import SYMBOL_CODERS
from kogata.coding.plane import MAX_ALPHABET, Plane, PlaneKind, PlaneSpec

# Twice a magnitude must stay below the 2**63 that a varint may hold.
FARTHEST = 1 << 62


class Shifted(Coder):
    """Integers. Stores the least, the span, and the symbols in whichever symbol coder needs the fewest bytes."""

    name: ClassVar[str] = "shifted symbols"
    tag: ClassVar[int] = 7

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.INTEGERS

    def encode(self, plane: Plane) -> bytes | None:
        if not plane.spec.size:
            return None
        # Python's integers, because the span of int64 and uint64 overflows both.
        least, most = int(plane.array.min()), int(plane.array.max())
        alphabet = most - least + 1
        if alphabet > MAX_ALPHABET or not -FARTHEST <= least <= most < FARTHEST:
            return None
        symbols = (plane.array.astype(np.int64) - least).astype(np.uint16)
        _, body = encode_smallest(Plane.symbols(symbols, alphabet), SYMBOL_CODERS)
        return write_varint(_zigzag(least)) + write_varint(alphabet - 1) + body

    def decode(self, data: bytes, spec: PlaneSpec) -> NDArray[Any]:
        folded, at = read_varint(data, 0)
        least = -(folded + 1) // 2 if folded % 2 else folded // 2
        span, at = read_varint(data, at)
        lowest, highest = (0, 1) if spec.dtype == "bool" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
        if span >= MAX_ALPHABET or least < lowest or least + span > highest:
            raise damaged(self, spec, f"values from {least} to {least + span} do not fit {spec.dtype}")
        symbols_spec = PlaneSpec(PlaneKind.SYMBOLS, spec.shape, "uint16", span + 1)
        symbols = decode_tagged(data[at:], symbols_spec, SYMBOL_CODERS)
        # A sum of arrays without axes is a scalar; asarray makes it an array again.
        return np.asarray(symbols.astype(np.int64) + least, spec.array_dtype)


def _zigzag(value: int) -> int:
    """Signed to unsigned, small magnitudes first: 0, -1, 1, -2, ..."""
    return 2 * value if value >= 0 else -2 * value - 1

"""Floats as planes of bytes, each entropy coded by itself: exponents of weights repeat, mantissas are like noise.

The bits of each float are rotated left by one first, so that the sign, which is as good as random, joins the lowest bits of the
mantissa, and the top byte of a float32 or bfloat16 is its exponent.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, damaged, decode_tagged, encode_smallest, read_varint, write_varint
from kogata.coding.nested import SYMBOL_CODERS
from kogata.coding.packed import Packed
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

# Past this share of eight bits a byte, tables cost more than they save.
NOISE = 0.99


class FloatBytes(Coder):
    """Floats. From the top byte on: its coded length, and its symbols by whichever coder needs the fewest bytes."""

    name: ClassVar[str] = "float bytes"
    tag: ClassVar[int] = 9
    required_gain: ClassVar[float] = 0.02  # packed floats are read at the speed of memory

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.FLOATS

    def encode(self, plane: Plane) -> bytes:
        itemsize = plane.spec.array_dtype.itemsize
        bits = plane.array.ravel().view(f"u{itemsize}")
        bits = bits << 1 | bits >> 8 * itemsize - 1
        parts: list[bytes] = []
        for number in range(itemsize - 1, -1, -1):
            symbols = Plane.symbols((bits >> 8 * number).astype(np.uint8), 256)
            noise = symbols.entropy_bits() > NOISE * 8 * plane.spec.size
            _, body = encode_smallest(symbols, (Packed(),) if noise else SYMBOL_CODERS)
            parts.append((write_varint(len(body)) if number else b"") + body)
        return b"".join(parts)

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        itemsize, at = spec.array_dtype.itemsize, 0
        budget.charge("bytes of floats", Cost(scratch=4 * spec.nbytes, work=8 * spec.nbytes))
        symbols_spec = PlaneSpec(PlaneKind.SYMBOLS, (spec.size,), "uint8", 256)
        bits = np.zeros(spec.size, f"u{itemsize}")
        for number in range(itemsize - 1, -1, -1):
            length, at = read_varint(data, at) if number else (len(data) - at, at)
            if length > len(data) - at:
                raise damaged(self, spec, f"byte {number} of its numbers takes {length} bytes, but {len(data) - at} are left")
            bits |= decode_tagged(data[at : at + length], symbols_spec, SYMBOL_CODERS, budget).astype(bits.dtype) << 8 * number
            at += length
        return (bits >> 1 | bits << 8 * itemsize - 1).view(spec.array_dtype).reshape(spec.shape)

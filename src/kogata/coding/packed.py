"""Fixed-width fields: ceil(log2 alphabet) bits per symbol; floats and integers unchanged, little-endian."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, as_symbols, byte_array, damaged, from_symbols
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec


class Packed(Coder):
    """For all planes but masks: the fallback without model or header."""

    name: ClassVar[str] = "packed"
    tag: ClassVar[int] = 0

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is not PlaneKind.MASK

    def encode(self, plane: Plane) -> bytes:
        if plane.spec.kind is not PlaneKind.SYMBOLS:
            return plane.array.astype(plane.array.dtype.newbyteorder("<")).tobytes()
        from kogata.coding.kernels import bits

        symbols, alphabet = as_symbols(plane)
        out = np.empty(packed_bytes(plane.spec), np.uint8)
        bits.pack(symbols, (alphabet - 1).bit_length(), out)
        return out.tobytes()

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        expected = packed_bytes(spec)
        if len(data) != expected:
            raise damaged(self, spec, f"it holds {len(data)} bytes instead of {expected}")
        budget.charge("a packed plane", Cost(scratch=2 * spec.size + len(data), work=2 * spec.size + len(data)))
        if spec.kind is not PlaneKind.SYMBOLS:
            dtype = spec.array_dtype
            if spec.dtype == "bool" and max(data, default=0) > 1:
                raise damaged(self, spec, "a boolean is neither 0 nor 1")
            return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(spec.shape)
        from kogata.coding.kernels import bits

        symbols = np.empty(spec.size, np.uint16)
        bits.unpack(byte_array(data), (spec.alphabet - 1).bit_length(), symbols)
        if symbols.size and int(symbols.max()) >= spec.alphabet:
            raise damaged(self, spec, f"symbol {symbols.max()} is outside the alphabet of {spec.alphabet}")
        return from_symbols(symbols, spec)


def packed_bytes(spec: PlaneSpec) -> int:
    """Size in bytes of a plane in fixed-width fields."""
    match spec.kind:
        case PlaneKind.MASK:
            return (spec.size + 7) // 8
        case PlaneKind.SYMBOLS:
            return (spec.size * (spec.alphabet - 1).bit_length() + 7) // 8
        case _:
            return spec.nbytes

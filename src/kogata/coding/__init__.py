"""Entropy coding: planes, their symbol models, and the coders that turn them into bytes.

``encode`` tries every coder that accepts a plane and keeps the fewest bytes; ``decode`` reads which one it was from the
first byte. What remains outside is the plane's spec: kind, shape, dtype and alphabet.
"""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kogata.coding.adaptive import Adaptive
from kogata.coding.bitmap import Bitmap
from kogata.coding.coder import Coder, decode_tagged, encode_smallest
from kogata.coding.context import Context
from kogata.coding.float_bytes import FloatBytes
from kogata.coding.huffman import Huffman
from kogata.coding.packed import Packed
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec
from kogata.coding.rans import StaticRans
from kogata.coding.relative import Relative
from kogata.coding.shifted import Shifted
from kogata.coding.zstd import Zstd

__all__ = ["CODERS", "Coded", "Coder", "Plane", "PlaneKind", "PlaneSpec", "decode", "encode"]

# From the quickest to decode to the slowest, because the earlier one wins a tie; the two that must save a share come last, to
# be measured against all others.
CODERS: tuple[Coder, ...] = (
    Packed(),
    Bitmap(),
    StaticRans(),
    Huffman(),
    Zstd(),
    Relative(),
    Shifted(),
    Adaptive(),
    FloatBytes(),
    Context(),
)


@dataclass(frozen=True)
class Coded:
    """A plane as bytes, the name of the coder that wrote them, and the plane's Shannon entropy to judge them by."""

    data: bytes
    coder: str
    entropy_bits: float


def encode(plane: Plane, coders: tuple[Coder, ...] = CODERS) -> Coded:
    """The plane in the fewest bytes any of ``coders`` needs. The same plane gives the same bytes."""
    coder, data = encode_smallest(plane, coders)
    return Coded(data, coder.name, plane.entropy_bits())


def decode(data: bytes, spec: PlaneSpec) -> NDArray[Any]:
    """The array of a plane again, from ``Coded.data``. Raises FileFormatError if the bytes are not such a plane's."""
    return decode_tagged(data, spec, CODERS)

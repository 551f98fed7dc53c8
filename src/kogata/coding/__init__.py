"""Entropy coding: planes, their symbol models, and the coders that turn them into bytes.

``encode`` tries every coder that accepts a plane and keeps the shortest result; ``decode`` reads from the first byte which
coder it was. The plane's spec (kind, shape, dtype, alphabet) is not in these bytes and must be kept elsewhere.

>>> import numpy as np
>>> plane = Plane.symbols(np.array([3, 1, 3, 3, 0, 3]), alphabet=4)
>>> coded = encode(plane)
>>> decode(coded.data, plane.spec).tolist()
[3, 1, 3, 3, 0, 3]
"""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from kogata.coding.adaptive import Adaptive
from kogata.coding.bitmap import Bitmap
from kogata.coding.budget import Budget, Cost
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

__all__ = ["CODERS", "Budget", "Coded", "Coder", "Cost", "Plane", "PlaneKind", "PlaneSpec", "decode", "encode"]

# In order of decoding speed, fastest first, because the earlier coder wins a tie. The two coders that must save a share of the
# bytes come last, so that it is measured against all others.
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
    """A coded plane: its bytes, the name of the coder that wrote them, and the plane's Shannon entropy for comparison."""

    data: bytes
    coder: str
    entropy_bits: float


def encode(plane: Plane, coders: tuple[Coder, ...] = CODERS) -> Coded:
    """Code a plane in the fewest bytes that any of ``coders`` needs. The same plane always gives the same bytes.

    Raises ValueError when no coder accepts the plane.
    """
    coder, data = encode_smallest(plane, coders)
    return Coded(data, coder.name, plane.entropy_bits())


def decode(data: bytes, spec: PlaneSpec, budget: Budget | None = None) -> NDArray[Any]:
    """Decode the array of a plane from ``Coded.data``, within ``budget`` if one is given.

    Raises FileFormatError if the bytes do not fit the spec, or the budget does not suffice.
    """
    budget = budget or Budget()
    budget.charge(f"a plane of shape {spec.shape}", Cost(keep=spec.nbytes))
    return decode_tagged(data, spec, CODERS, budget)

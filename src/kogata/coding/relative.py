"""Relative indices: a mask as the entropy-coded gaps between its ones.

Han, Mao and Dally, "Deep Compression", ICLR 2016, section 2, store gaps in a fixed width and bridge longer gaps by filler
zeros. Here longer gaps are bridged in the same way, but each symbol costs its entropy instead of a fixed width.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, damaged, decode_tagged, encode_smallest, read_varint, write_varint
from kogata.coding.nested import SYMBOL_CODERS
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

# A symbol below BRIDGE skips that many zeros and sets a one; BRIDGE itself skips as many zeros and sets nothing.
BRIDGE = 255


class Relative(Coder):
    """For masks, best when ones are few and scattered. The gaps are coded by the best of ``symbol_coders``."""

    name: ClassVar[str] = "relative index"
    tag: ClassVar[int] = 6

    def __init__(self, symbol_coders: tuple[Coder, ...] = SYMBOL_CODERS) -> None:
        self.symbol_coders = symbol_coders

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind is PlaneKind.MASK

    def encode(self, plane: Plane) -> bytes | None:
        ones = np.flatnonzero(plane.array)
        zeros_before = np.diff(ones, prepend=-1) - 1
        bridges = zeros_before // BRIDGE
        symbols = np.full(len(ones) + int(bridges.sum()), BRIDGE, np.uint8)
        symbols[np.cumsum(bridges + 1) - 1] = zeros_before % BRIDGE
        _, gaps = encode_smallest(Plane.symbols(symbols, BRIDGE + 1), self.symbol_coders)
        return write_varint(len(symbols)) + gaps

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        n_symbols, at = read_varint(data, 0)
        if n_symbols > spec.size:
            raise damaged(self, spec, f"it states {n_symbols} gaps for {spec.size} elements")
        budget.charge("relative indices", Cost(scratch=32 * n_symbols, work=spec.size + 16 * n_symbols))
        gaps_spec = PlaneSpec(PlaneKind.SYMBOLS, (n_symbols,), "uint8", BRIDGE + 1)
        gaps = decode_tagged(data[at:], gaps_spec, SYMBOL_CODERS, budget)
        sets_one = gaps != BRIDGE
        ones = (np.cumsum(gaps.astype(np.int64) + sets_one) - 1)[sets_one]
        if ones.size and int(ones[-1]) >= spec.size:
            raise damaged(self, spec, f"its last set element is {ones[-1]}, outside the mask")
        mask = np.zeros(spec.size, np.bool_)
        mask[ones] = True
        return mask.reshape(spec.shape)

"""Adaptive coding: the model is learned while decoding, so no table is stored. Best for small planes."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import Coder, alphabet_of, as_symbols, byte_array, from_symbols
from kogata.coding.packed import packed_bytes
from kogata.coding.plane import Plane, PlaneKind, PlaneSpec

# Learning costs about log2(n) / 2 bits for each symbol of the alphabet, a stored table about 10 bits. Past a million elements
# that difference is negligible, and decoding bit by bit takes tens of milliseconds per million elements.
MAX_SYMBOLS = 1 << 20


class Adaptive(Coder):
    """For symbols and masks. Each symbol is coded bit by bit along a binary tree with an adaptive counter in each node."""

    name: ClassVar[str] = "adaptive"
    tag: ClassVar[int] = 3

    def accepts(self, spec: PlaneSpec) -> bool:
        return spec.kind in (PlaneKind.SYMBOLS, PlaneKind.MASK) and spec.size <= MAX_SYMBOLS

    def encode(self, plane: Plane) -> bytes | None:
        from kogata.coding.kernels import arithmetic

        symbols, alphabet = as_symbols(plane)
        data = np.empty(packed_bytes(plane.spec) + 4, np.uint8)
        length = arithmetic.code_tree(symbols, (alphabet - 1).bit_length(), alphabet, data, False)
        return None if length < 0 else data[:length].tobytes().rstrip(b"\0")

    def decode(self, data: bytes, spec: PlaneSpec, budget: Budget) -> NDArray[Any]:
        from kogata.coding.kernels import arithmetic

        alphabet = alphabet_of(spec)
        counters = 1 << (alphabet - 1).bit_length()
        work = counters + 10 * spec.size * (1 + (alphabet - 1).bit_length())
        budget.charge("an adaptive code", Cost(scratch=4 * counters + 2 * spec.size + len(data), work=work))
        symbols = np.zeros(spec.size, np.uint16)
        arithmetic.code_tree(symbols, (alphabet - 1).bit_length(), alphabet, byte_array(data), True)
        return from_symbols(symbols, spec)

"""The planes and coders of ``docs/format.md``, sections 4 and 5. Imports nothing of Kogata."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
FLOATS = ("float16", "bfloat16", "float32", "float64")


class Damaged(Exception):  # noqa: N818 - reads as what the file is
    """What the page says to refuse."""


def refuse(unless: object) -> None:
    if not unless:
        raise Damaged


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for number in range(9):
        refuse(at < len(data))
        value |= (data[at] & 127) << 7 * number
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise Damaged


def unzigzag(value: int) -> int:
    return -(value + 1) // 2 if value % 2 else value // 2


# 4. Planes


class Plane:
    """What a plane declares: n elements of some type, A symbols, w bits for each."""

    def __init__(self, typed: str, shape: Sequence[int], alphabet: int = 0) -> None:
        self.type, self.shape, self.n = typed, tuple(shape), math.prod(shape)
        self.symbols = typed in ("symbols", "mask")
        self.alphabet = 2 if typed == "mask" else alphabet
        self.width = (self.alphabet - 1).bit_length() if self.symbols else 0
        if typed == "symbols":
            refuse(1 <= alphabet <= 65536)
            self.dtype = np.dtype("u1" if alphabet <= 1 << 8 else "<i2" if alphabet <= 1 << 15 else "<i4")
        else:
            refuse(typed in ("mask", *INTEGERS, *FLOATS))
            self.dtype = np.dtype({"mask": "bool", "bfloat16": "<u2"}.get(typed, typed)).newbyteorder("<")
        refuse(self.n * self.dtype.itemsize <= 1 << 33)


def decoded(data: bytes, plane: Plane, coders: Mapping[int, Callable[[bytes, Plane], Any]] | None = None) -> Array:
    """The array of a plane; a bfloat16 is its 16 bits."""
    refuse(data and data[0] in (coders or CODERS))
    found = np.asarray((coders or CODERS)[data[0]](data[1:], plane))
    if plane.symbols:
        refuse(not found.size or int(found.max()) < plane.alphabet)
        found = found.astype(plane.dtype)
    return found.reshape(plane.shape)


def nested(data: bytes, n: int, alphabet: int) -> Array:
    return decoded(data, Plane("symbols", (n,), alphabet), {tag: CODERS[tag] for tag in (0, 3, 4, 5)})


# 5. Coders


def bits_of(data: bytes) -> Array:
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")


def packed(body: bytes, plane: Plane) -> Array:
    if not plane.symbols:
        refuse(len(body) == plane.n * plane.dtype.itemsize)
        return np.frombuffer(body, plane.dtype)
    refuse(plane.type != "mask" and len(body) == -(-plane.n * plane.width // 8))
    fields = bits_of(body)[: plane.n * plane.width].reshape(plane.n, plane.width).astype(np.int64)
    return fields @ (1 << np.arange(plane.width, dtype=np.int64))


def bitmap(body: bytes, plane: Plane) -> Array:
    refuse(plane.type == "mask" and len(body) == -(-plane.n // 8))
    return bits_of(body)[: plane.n]


def zstd(body: bytes, plane: Plane) -> Array:
    unpacker = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=1 << 23)
    if plane.type == "mask":
        return bitmap(unpacker.decompress(body, max_output_size=plane.n // 8 + 2), plane)
    dtype = plane.dtype if not plane.symbols else np.dtype("u1" if plane.alphabet <= 256 else "<u2")
    raw = unpacker.decompress(body, max_output_size=plane.n * dtype.itemsize + 1)
    refuse(len(raw) == plane.n * dtype.itemsize)
    return np.frombuffer(np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, plane.n).T.tobytes(), dtype)


class Arithmetic:
    """5.1"""

    def __init__(self, body: bytes) -> None:
        self.bytes = iter(body)
        self.low, self.high, self.code = 0, (1 << 32) - 1, 0
        for _ in range(4):
            self.code = self.code << 8 | next(self.bytes, 0)

    def bit(self, p: int) -> int:
        cut = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.code <= cut)
        if bit:
            self.high = cut
        else:
            self.low = cut + 1
        while self.low >> 24 == self.high >> 24:
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = (self.high << 8 & 0xFFFFFFFF) + 255
            self.code = (self.code << 8 & 0xFFFFFFFF) + next(self.bytes, 0)
        return bit


class Counters:
    """5.2: a table of counters by whatever key."""

    def __init__(self, limit: int) -> None:
        self.limit, self.table = limit, dict[Any, tuple[int, int]]()

    def p(self, key: Any) -> int:
        return min(max(self.table.get(key, (1 << 21, 0))[0] >> 6, 1), 65535)

    def update(self, key: Any, bit: int) -> None:
        q, t = self.table.get(key, (1 << 21, 0))
        self.table[key] = q + (((bit << 22) - bit - q) * (65536 // (t + 2)) >> 16), min(t + 1, self.limit)


def adaptive(body: bytes, plane: Plane) -> list[int]:
    refuse(plane.symbols and plane.n <= 1 << 20)
    coder, counters, found = Arithmetic(body), Counters(1023), list[int]()
    for _ in range(plane.n):
        node = 1
        for level in range(plane.width - 1, -1, -1):
            bit = 0
            if ((2 * node + 1) << level) - (1 << plane.width) < plane.alphabet:
                bit = coder.bit(counters.p(node))
                counters.update(node, bit)
            node = 2 * node + bit
        found.append(node - (1 << plane.width))
    return found


def table_of(body: bytes, plane: Plane, alphabet: int) -> tuple[list[int], bytes]:
    """A varint H and H bytes of a number for each symbol, as coders 4 and 5 have them; and what follows."""
    size, at = varint(body, 0)
    return adaptive(body[at : at + size], Plane("symbols", (plane.alphabet,), alphabet)), body[at + size :]


def huffman(body: bytes, plane: Plane) -> list[int]:
    refuse(plane.symbols)
    lengths, rest = table_of(body, plane, 17)
    order = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(order) == 1:
        return [order[0][1]] * plane.n
    refuse(sum(2.0**-length for length, _ in order) == 1)
    codes, code, before = dict[tuple[int, int], int](), -1, 0
    for length, symbol in order:
        code = code + 1 << length - before
        codes[length, code], before = symbol, length
    bits, at, found = bits_of(rest).tolist(), 0, list[int]()
    for _ in range(plane.n):
        code = length = 0
        while (length, code) not in codes:
            refuse(at < len(bits))
            code, length, at = code << 1 | bits[at], length + 1, at + 1
        found.append(codes[length, code])
    refuse(-(-at // 8) == len(rest))
    return found


def rans(body: bytes, plane: Plane) -> list[int]:
    refuse(plane.symbols and plane.alphabet <= 256)
    widths, rest = table_of(body, plane, 13)
    used = sum(width - 1 for width in widths if width)
    low = int.from_bytes(rest[: -(-used // 8)], "little")
    frequencies: list[int] = []
    for width in widths:
        frequencies.append((1 << width - 1 | low & (1 << width - 1) - 1) if width else 0)
        low >>= max(0, width - 1)
    refuse(sum(frequencies) == 4096)
    starts = np.cumsum([0, *frequencies]).tolist()
    symbol_at = np.repeat(np.arange(plane.alphabet), frequencies).tolist()
    rest = rest[-(-used // 8) :]
    states = list(struct.unpack_from("<8I", rest))
    words, found = iter(struct.unpack(f"<{(len(rest) - 32) // 2}H", rest[32:])), list[int]()
    for i in range(-(-plane.n // 8) * 8):
        x = states[i % 8]
        symbol = symbol_at[x % 4096]
        x = frequencies[symbol] * (x // 4096) + x % 4096 - starts[symbol]
        states[i % 8] = x << 16 | next(words) if x < 1 << 16 else x
        found.append(symbol)
    refuse(next(words, None) is None and states == [1 << 16] * 8)
    return found[: plane.n]


def relative(body: bytes, plane: Plane) -> Array:
    m, at = varint(body, 0)
    refuse(plane.type == "mask" and m <= plane.n)
    mask, place = np.zeros(plane.n, bool), 0
    for symbol in nested(body[at:], m, 256).tolist():
        place += symbol
        if symbol < 255:
            refuse(place < plane.n)
            mask[place] = True
            place += 1
    return mask


def shifted(body: bytes, plane: Plane) -> Array:
    refuse(plane.type in INTEGERS)
    least, at = varint(body, 0)
    span, at = varint(body, at)
    refuse(span < 65536)
    values = [unzigzag(least) + symbol for symbol in nested(body[at:], plane.n, span + 1).tolist()]
    return np.array(values, plane.dtype)


def float_bytes(body: bytes, plane: Plane) -> Array:
    refuse(plane.type in FLOATS)
    z, at = plane.dtype.itemsize, 0
    numbers = [0] * plane.n
    for byte in range(z - 1, -1, -1):
        size, at = varint(body, at) if byte else (len(body) - at, at)
        numbers = [a | b << 8 * byte for a, b in zip(numbers, nested(body[at : at + size], plane.n, 256).tolist(), strict=True)]
        at += size
    return np.array([x >> 1 | (x & 1) << 8 * z - 1 for x in numbers], f"<u{z}").view(plane.dtype)


# 5.3 to 5.5: context mixing

SQUASH = [min(max(math.floor(65536 / (1 + math.exp(-x / 256))), 1), 65535) for x in range(-3072, 3073)]
STRETCH = (np.searchsorted(SQUASH, np.arange(65536)) - 3072).tolist()


class Mixer:
    def __init__(self) -> None:
        self.weights = [10922] * 6

    def bit(self, coder: Arithmetic, probabilities: Sequence[int]) -> int:
        inputs = [STRETCH[p] for p in probabilities]
        total = sum(w * s for w, s in zip(self.weights, inputs, strict=True)) >> 16
        p = SQUASH[min(max(total, -3072), 3072) + 3072]
        bit = coder.bit(p)
        error = (bit << 16) - p
        self.weights = [w + ((6 * s * error + (1 << 19)) >> 20) for w, s in zip(self.weights, inputs, strict=True)]
        return bit


def context(body: bytes, plane: Plane) -> Array:
    refuse(plane.symbols and plane.alphabet <= 256 and 0 < plane.n * plane.width <= 1 << 24)
    rows = plane.shape[0] if len(plane.shape) > 1 else 1
    if plane.type == "symbols":
        return context_symbols(body, plane, rows, plane.n // rows)
    scan, at = varint(body, 0)
    rows, columns = (plane.n // rows, rows) if scan % 2 else (rows, plane.n // rows)
    refuse(1 <= scan >> 1 <= max(1, columns // 2))
    mask = context_mask(body[at:], rows, columns, scan >> 1)
    return mask.T if scan % 2 else mask


def context_mask(body: bytes, rows: int, columns: int, stride: int) -> Array:
    edge = 2 * stride + 4
    cells = np.zeros((rows + 2, columns + 2 * edge), np.int64).tolist()
    ones = [0] * (columns + 2 * edge)
    coder, mixer, total = Arithmetic(body), Mixer(), 0
    column_counters, others = Counters(60), [Counters(1000) for _ in range(3)]
    for r in range(rows):
        row = x_sum = 0
        here, up, up2 = cells[r + 2], cells[r + 1], cells[r]
        for c in range(columns):
            k = c + edge
            density = (total + 1 << 16) // (r * columns + c + 16)
            beside = ones[k - 1] + ones[k + 1] + ones[k - stride] + ones[k + stride] + 2 * ones[k]
            near = ((beside << 16) + 60 * density) // (6 * r + 60)
            by_column = ((ones[k] << 16) + 16 * near) // (r + 16)
            by_both = min(max(by_column * ((row << 16) + 8 * density) // max(x_sum + 8 * density, 1), 1), 65535)
            by_row = min(max(((row << 16) + 20 * density) // (c + 20), 1), 65535)
            level = STRETCH[by_both] + 3072 >> 7
            left, left2, n, nw = here[k - 1], here[k - 2], here[k - stride], here[k - stride - 1]
            ne = here[k - stride + 1] if stride > 1 else 0
            around = left + 2 * left2 + 4 * up[k] + 8 * up2[k] + 16 * up[k - 1] + 32 * up[k + 1]
            grid = left + 2 * n + 4 * ne + 8 * nw + 16 * left2
            count = left + left2 + here[k - 3] + n + ne + nw + sum(here[k - 2 * stride - 1 : k - 2 * stride + 2])
            keys = [(around, level), (grid, level), (4 * count + 2 * n + left, level)]
            seen = [counters.p(key) for counters, key in zip(others, keys, strict=True)]
            bit = mixer.bit(coder, [by_both, by_row, column_counters.p(c), *seen])
            here[k] = bit
            column_counters.update(c, bit)
            for counters, key in zip(others, keys, strict=True):
                counters.update(key, bit)
            total, row, x_sum = total + bit, row + bit, x_sum + by_column
        ones = [a + b for a, b in zip(ones, here, strict=True)]
    return np.array(cells)[2:, edge : edge + columns]


def context_symbols(body: bytes, plane: Plane, rows: int, columns: int) -> Array:
    coder, mixer, found = Arithmetic(body), Mixer(), np.zeros((rows, columns), np.int64).tolist()
    recent, own_row = Counters(30), Counters(255)
    others = [Counters(255) for _ in range(4)]
    left = left2 = 0
    for r in range(rows):
        own_row = Counters(255)
        for c in range(columns):
            above = found[r - 1][c] if r else 0
            node = 1
            for level in range(plane.width - 1, -1, -1):
                bit = 0
                if ((2 * node + 1) << level) - (1 << plane.width) < plane.alphabet:
                    place = c % min(columns, (1 << 22) >> plane.width)
                    tables = [recent, own_row, *others]
                    keys = [node, node, (left, node), (left2, node), (above, node), (place, node)]
                    bit = mixer.bit(coder, [table.p(key) for table, key in zip(tables, keys, strict=True)])
                    for table, key in zip(tables, keys, strict=True):
                        table.update(key, bit)
                node = 2 * node + bit
            left2, left = left, node - (1 << plane.width)
            found[r][c] = left
    return np.array(found)


CODERS: Mapping[int, Callable[[bytes, Plane], Any]] = {
    0: packed, 1: bitmap, 2: zstd, 3: adaptive, 4: huffman, 5: rans, 6: relative, 7: shifted, 8: context, 9: float_bytes,
}  # fmt: skip

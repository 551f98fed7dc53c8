"""The forms of ``docs/format.md``, sections 6, as plain formulas in NumPy. Imports nothing of Kogata.

A tensor is an array and the name of its float type. A bfloat16 is held as a float32 whose lower half is zero, and every result
in that type is rounded to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensor = tuple[Array, str]


def rounded(values: Any, dtype: str) -> Array:
    """To nearest, ties to even; of bfloat16, as a float32."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    bits = np.asarray(values).astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def converted(array: Array, typed: str, dtype: str) -> Array:
    """A plane of floats, of the type ``typed``, in another type."""
    return rounded((array.astype(np.uint32) << 16).view(np.float32) if typed == "bfloat16" else array, dtype)


def product_of(node: Sequence[Any]) -> bool:
    """Whether a sum of products is anywhere in the tree."""
    return node[0] in ("product", "displacement", "fastfood") or any(product_of(part) for part in node[3].values())


def rows_of(array: Array) -> Array:
    return array.reshape(1, -1) if array.ndim < 2 else array.reshape(array.shape[0], -1)


def sized(shape: Sequence[int]) -> tuple[int, int]:
    """O and I."""
    return shape[0], math.prod(shape[1:])


def dense(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    return converted(planes["values"], typed, header["dtype"]), header["dtype"]


def masked(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    values, dtype = parts["values"]
    found = np.zeros(planes["mask"].shape, values.dtype)
    found[planes["mask"]] = values
    return found, dtype


def affine(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (scale, dtype), code = parts["scale"], rows_of(planes["code"])
    assert scale.shape == planes["zero"].shape
    assert len(scale) in (1, len(code))
    group = np.arange(code.shape[1]) // header["group"]
    less = rounded(rounded(code, dtype) - rounded(planes["zero"], dtype)[:, group], dtype)
    return rounded(less * scale[:, group], dtype).reshape(planes["code"].shape), dtype


def codebook(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    table, dtype = parts["table"]
    return table[planes["index"]], dtype


def vectors(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (table, dtype), (rows, columns) = parts["table"], sized(header["shape"])
    length = table.shape[2]
    o, i = np.arange(rows)[:, None], np.arange(columns)
    return table[i // length, planes["index"][o, i // length], i % length].reshape(header["shape"]), dtype


def binary(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    scale, dtype = parts["scale"]
    return np.where(rows_of(planes["positive"]), scale, -scale).reshape(planes["positive"].shape), dtype


def product(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    factors = [array for array, _ in parts.values()]
    return np.einsum(header["equation"], *factors).reshape(header["shape"]), next(iter(parts.values()))[1]


def tied(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (base, dtype), (tag, fields), shape = parts["base"], header["map"], header["shape"]
    index, sign = MAPS[tag](fields, shape, base.size)
    return (base.ravel()[index] * sign.astype(base.dtype)).reshape(shape), dtype


def permuted(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    part, dtype = parts["part"]
    return part[planes["order"]], dtype


def total(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (first, dtype), *others = parts.values()
    for other, _ in others:
        first = rounded(first + other, dtype)
    return first, dtype


def stacked(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    filters, member = [array for array, _ in parts.values()], planes["member"].tolist()
    found = np.zeros((len(member), filters[0].shape[1], *header["kernel"]), filters[0].dtype)
    for o, p in enumerate(member):
        one = filters[p][member[:o].count(p)]
        margins = [(whole - own) // 2 for whole, own in zip(header["kernel"], one.shape[1:], strict=True)]
        found[o][(slice(None), *(slice(m, m + own) for m, own in zip(margins, one.shape[1:], strict=True)))] = one
    return found, next(iter(parts.values()))[1]


def displacement(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (g, dtype), (h, _), (rows, columns) = parts["g"], parts["h"], sized(header["shape"])
    n = g.shape[1]
    a, b = np.arange(n)[:, None], np.arange(n)
    matrices = [
        (z[(a - b) % n] * np.where(a < b, f, 1)).astype(np.float64)
        for v in zip(g, h, strict=True)
        for z, f in zip(v, (1, -1), strict=True)
    ]
    found = sum(one @ other for one, other in zip(matrices[::2], matrices[1::2], strict=True))
    return rounded(np.asarray(found)[:rows, :columns].reshape(header["shape"]), dtype), dtype


def fastfood(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (s, dtype), (g, _), (b, _) = parts["s"], parts["g"], parts["b"]
    rows, columns = sized(header["shape"])
    stretches, n = s.shape
    ones = np.array([[(i & j).bit_count() for j in range(n)] for i in range(n)])
    h = (-1.0) ** ones / math.sqrt(n)
    outputs, found = generator(header["seed"]), list[Array]()
    for q in range(stretches):
        drawn = [next(outputs) for _ in range(n)]
        order = sorted(range(n), key=lambda place: drawn[place])
        found.append(s[q][:, None] * (h @ (g[q][:, None] * h[order, :columns] * b[q])))
    return rounded(np.concatenate(found)[:rows].reshape(header["shape"]), dtype), dtype


def transposed(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    (part, dtype), view, axes = parts["part"], header["view"], header["axes"]
    found = np.empty(view, part.dtype)
    turned = part.reshape([view[axis] for axis in axes])
    for place in np.ndindex(turned.shape):
        found[tuple(place[axes.index(n)] for n in range(len(view)))] = turned[place]
    return found.reshape(header["shape"]), dtype


def separate(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    return np.stack([array for array, _ in parts.values()]), next(iter(parts.values()))[1]


def zero_row(header: Any, planes: Any, parts: Any, typed: str) -> Tensor:
    part, dtype = parts["part"]
    found = part.copy()
    found[header["row"]] = 0
    return found, dtype


FORMS: Mapping[str, Callable[[Any, Any, Any, str], Tensor]] = {
    "dense": dense, "masked": masked, "affine": affine, "codebook": codebook, "vectors": vectors, "binary": binary,
    "product": product, "tied": tied, "permuted": permuted, "sum": total, "stacked": stacked, "displacement": displacement,
    "fastfood": fastfood, "transposed": transposed, "separate": separate, "zero-row": zero_row,
}  # fmt: skip


# 6.1 Index maps: flat index and sign of each entry


def mix(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def hashed(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    found = [mix(p ^ mix(fields["seed"])) for p in range(math.prod(shape))]
    return np.array([size * h >> 32 for h in found]), np.array([1 - 2 * (h % 2) for h in found])


def circulant(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    (rows, columns), block, outputs = sized(shape), fields["block"], generator(fields["seed"])
    across = -(-columns // block)
    signs = [1 - 2 * (next(outputs) % 2) for _ in range(columns)]
    index = [(o // block * across + i // block) * block + (o - i) % block for o in range(rows) for i in range(columns)]
    return np.array(index), np.array(signs * rows)


def diagonal(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    (rows, columns), blocks = sized(shape), fields["blocks"]
    high, wide = -(-rows // blocks), -(-columns // blocks)
    inside = np.array([o // high == i // wide for o in range(rows) for i in range(columns)])
    index = np.array([(o // high * high + o % high) * wide + i % wide for o in range(rows) for i in range(columns)])
    return np.where(inside, index, 0), inside.astype(int)


def repeat(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    place = np.arange(size).reshape(shape[0] // fields["copies"], -1)
    return place[np.arange(shape[0]) // fields["copies"]].ravel(), np.ones(math.prod(shape), int)


def opposite(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    index, _ = repeat({"copies": 2}, shape, size)
    return index, np.repeat([1 - 2 * (o % 2) for o in range(shape[0])], math.prod(shape[1:]))


def orbit(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    count, (outputs, inputs, k, _) = 8 if fields["mirrored"] else 4, shape
    base = np.arange(size).reshape(outputs // count, inputs, k, k)
    found = np.empty(shape, int)
    for o in range(outputs):
        e = o % count
        back = e if e >= 4 else -e % 4
        for c in range(inputs):
            source = c
            if fields["stacked"]:
                h = c % count
                source = c - h + ((back + (-h if back >= 4 else h)) % 4 + 4 * ((back >= 4) != (h >= 4)))
            plane = base[o // count, source]
            if e >= 4:
                plane = np.array([[plane[y, k - 1 - x] for x in range(k)] for y in range(k)])
            for _ in range(e % 4):
                plane = np.array([[plane[x, k - 1 - y] for x in range(k)] for y in range(k)])
            found[o, c] = plane
    return found.ravel(), np.ones(found.size, int)


def crops(fields: Any, shape: Sequence[int], size: int) -> tuple[Array, Array]:
    extent, (outputs, inputs, k, _) = fields["extent"], shape
    c = extent - k + 1
    base = np.arange(size).reshape(outputs // c**2, inputs, extent, extent)
    found = [base[o // c**2, :, (y := o % c**2 // c) : y + k, (x := o % c) : x + k] for o in range(outputs)]
    return np.array(found).ravel(), np.ones(math.prod(shape), int)


MAPS: Mapping[str, Callable[[Any, Sequence[int], int], tuple[Array, Array]]] = {
    "hash": hashed, "circulant": circulant, "diagonal": diagonal, "repeat": repeat, "opposite": opposite, "orbit": orbit,
    "crops": crops,
}  # fmt: skip


# 6.2 Generator


def generator(seed: int) -> Iterator[int]:
    """The outputs of PCG64."""
    low, a = 0xFFFFFFFF, 0x43B0D7E5

    def hash_(v: int) -> int:
        nonlocal a
        v ^= a
        a = a * 0x931E8875 & low
        v = v * a & low
        return v ^ v >> 16

    def blend(x: int, y: int) -> int:
        z = (x * 0xCA01F9DD - y * 0x4973F715) & low
        return z ^ z >> 16

    pool = [hash_(v) for v in (seed, 0, 0, 0)]
    for i in range(4):
        for j in range(4):
            if i != j:
                pool[j] = blend(pool[j], hash_(pool[i]))
    b, words = 0x8B51F9DD, list[int]()
    for i in range(8):
        v = pool[i % 4] ^ b
        b = b * 0x58F38DED & low
        v = v * b & low
        words.append(v ^ v >> 16)
    n = [words[2 * i] | words[2 * i + 1] << 32 for i in range(4)]
    whole = (1 << 128) - 1
    increment = (2 * (n[2] << 64 | n[3]) + 1) & whole

    def step(state: int) -> int:
        return (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) & whole

    state = step(step(0) + (n[0] << 64 | n[1]))
    while True:
        state = step(state)
        value, turn = (state >> 64) ^ (state & (1 << 64) - 1), state >> 122
        yield (value >> turn | value << (64 - turn)) & (1 << 64) - 1

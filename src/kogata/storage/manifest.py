"""A compact encoding of the manifest: JSON entries with their numbers stored in columns. ``docs/format.md`` has the layout.

Entries for similar layers differ only in numbers. An entry without its numbers is a pattern. Each pattern is written once; the
numbers of all entries with this pattern follow column by column, as differences. Equal layers then give columns of zeros, which
DEFLATE compresses very well.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from kogata.coding.budget import Budget, Cost
from kogata.coding.coder import read_varint, write_varint
from kogata.errors import UsageError

Entry = list[Any]
MAX_MANIFEST = 16 << 20  # largest inflated size in bytes; far above that of a model with ten thousand weights
MAX_EXPANDED = 64 << 20  # largest total length of all entries; a single byte can repeat a long pattern
MANIFEST_PIECE = 1 << 16  # bytes inflated at a time
MAX_NESTING = 64  # of brackets; 16 forms within each other nest 36 of them
MAX_NUMBER = 1 << 53  # numbers must be smaller in magnitude, so that readers may store them as doubles


def write_manifest(entries: Sequence[Entry]) -> bytes:
    """The entries as DEFLATE-compressed bytes. Raises UsageError for values that are not JSON, and for non-integer numbers."""
    kinds: dict[str, int] = {}
    which: list[int] = []
    numbers: list[list[list[int]]] = []  # for each pattern, the numbers of each of its entries
    for entry in entries:
        found: list[int] = []
        try:
            text = json.dumps(_without_numbers(entry, found), separators=(",", ":"))
        except ValueError as error:
            raise UsageError(f"a file cannot hold the header of {str(entry[1])[:80]}: {error}.") from None
        kind = kinds.setdefault(text, len(kinds))
        if kind == len(numbers):
            numbers.append([])
        which.append(kind)
        numbers[kind].append(found)
    patterns = f"[{','.join(kinds)}]".encode()
    body = bytearray(write_varint(len(patterns)) + patterns + write_varint(len(entries)))
    for kind in which:
        body += write_varint(kind)
    for rows in numbers:
        for column in zip(*rows, strict=True):
            for value, before in zip(column, (0, *column), strict=False):
                step = value - before
                body += write_varint(2 * step if step >= 0 else -2 * step - 1)
    return _deflated(bytes(body))


def read_manifest(data: bytes, budget: Budget) -> Iterator[Entry]:
    """The inverse of :func:`write_manifest`; yields one entry at a time.

    Raises ValueError, or another error that malformed JSON causes, when ``data`` is damaged, and FileFormatError when it is
    over the budget.
    """
    body = inflated(data, -zlib.MAX_WBITS, budget)
    size, at = read_varint(body, 0)
    if size > len(body) - at:
        raise ValueError(f"its manifest declares {size} bytes of patterns, but ends before")
    patterns = parsed(body[at : at + size])
    if not isinstance(patterns, list):
        raise ValueError("its manifest holds no list of patterns")
    count, at = read_varint(body, at + size)
    if count > len(body) - at:
        raise ValueError(f"its manifest declares {count} entries, but ends before")
    which: list[int] = []
    for _ in range(count):
        kind, at = read_varint(body, at)
        which.append(kind)
    patterns = cast("list[Any]", patterns)
    lengths, counts = [len(json.dumps(pattern, separators=(",", ":"))) for pattern in patterns], Counter(which)
    expanded = sum(lengths[kind] for kind in which)
    if expanded > MAX_EXPANDED:
        raise ValueError(f"its manifest expands to more than {MAX_EXPANDED} bytes")
    budget.charge("its manifest", Cost(keep=8 * expanded, work=32 * expanded))
    rows: list[Iterator[tuple[int, ...]]] = []
    for kind, pattern in enumerate(patterns):
        found: list[int] = []
        _without_numbers(pattern, found)
        columns: list[list[int]] = []
        for _ in found:
            column, at = _column(body, at, counts[kind])
            columns.append(column)
        rows.append(zip(*columns, strict=True))
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes follow the last number of its manifest")
    for kind in which:
        yield _with_numbers(patterns[kind], iter(next(rows[kind], ())))


def inflated(data: bytes, window: int, budget: Budget) -> bytes:
    """Inflate a whole DEFLATE stream of at most ``MAX_MANIFEST`` bytes; ``window`` is that of :func:`zlib.decompressobj`.

    Each byte is charged with what its parsed value can take: 24 bytes of memory, as in ``[{},{}]``, and 400 operations, which
    is the time of a varint in Python.
    """
    inflater, text = zlib.decompressobj(window), b""
    while not inflater.eof and len(text) < MAX_MANIFEST and (piece := inflater.decompress(data, MANIFEST_PIECE)):
        budget.charge("its manifest", Cost(keep=24 * len(piece), work=400 * len(piece)))
        data, text = inflater.unconsumed_tail, text + piece
    if inflater.unconsumed_tail or not inflater.eof or len(text) > MAX_MANIFEST:
        raise ValueError(f"its manifest is longer than {MAX_MANIFEST} bytes, or cut off")
    if inflater.unused_data:
        raise ValueError(f"{len(inflater.unused_data)} bytes follow its manifest")
    return text


def parsed(text: bytes) -> Any:
    """Parse JSON of a file. Raises ValueError where it is nested too deeply, or has fractions, infinities or long numbers."""
    brackets = np.frombuffer(_QUOTED.sub(b"", text), np.uint8) | 32  # [ ] { } differ in one bit, as { } { }
    nesting = (brackets == ord("{")).astype(np.int8) - (brackets == ord("}")).astype(np.int8)
    if nesting.size and int(np.cumsum(nesting, dtype=np.int64).max()) > MAX_NESTING:
        raise ValueError(f"its manifest nests more than {MAX_NESTING} brackets")
    return json.loads(text, parse_int=_whole, parse_float=_whole, parse_constant=_whole)


def _whole(text: str) -> int:
    if len(text) > 17:  # a sign and the digits of 2**53
        raise ValueError(f"the number {text[:20]} of its manifest is too long")
    return int(text)


_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")


def pieces(name: str) -> list[str | int]:
    """Split a name at its numbers, so that names of similar layers share a pattern.

    >>> pieces("blocks.12.bn1.bias")
    ['blocks.', 12, '.bn', 1, '.bias']
    """
    parts = _NUMBER.split(name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts) if part]


def joined(parts: Sequence[object]) -> str:
    """The inverse of :func:`pieces`. Raises ValueError for anything but text and integers."""
    if not isinstance(parts, list) or any(type(part) not in (str, int) for part in parts):
        raise ValueError(f"{str(parts)[:80]} is not a name")
    return "".join(map(str, parts))


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return compressor.compress(data) + compressor.flush()


def _column(body: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Decode a column of ``count`` numbers, stored as differences; return it and the offset of the next column."""
    column: list[int] = []
    value = 0
    for _ in range(count):
        step, at = read_varint(body, at)
        value += -(step + 1) // 2 if step % 2 else step // 2
        if not -MAX_NUMBER < value < MAX_NUMBER:
            raise ValueError(f"its manifest holds the number {value}")
        column.append(value)
    return column, at


def _without_numbers(value: Any, found: list[int]) -> Any:
    """The value with each number replaced by 0; the numbers are appended to ``found`` in the order of the text."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not -MAX_NUMBER < value < MAX_NUMBER:
            raise ValueError(f"the number {value} is not below 2**53 in magnitude")
        found.append(value)
        return 0
    if isinstance(value, list | tuple):
        return [_without_numbers(part, found) for part in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {key: _without_numbers(part, found) for key, part in cast("dict[str, Any]", value).items()}
    if value is None or isinstance(value, str | bool):
        return value
    raise ValueError(f"{str(value)[:80]} is neither text, a whole number, true, false, null, a list nor a mapping")


def _with_numbers(value: Any, numbers: Iterator[int]) -> Any:
    """The inverse of :func:`_without_numbers`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return next(numbers)
    if isinstance(value, list):
        return [_with_numbers(part, numbers) for part in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: _with_numbers(part, numbers) for key, part in cast("dict[str, Any]", value).items()}
    return value

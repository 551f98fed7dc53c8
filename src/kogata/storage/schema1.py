"""Convert manifests of schema 1 to entries of the current schema. ``docs/format.md`` lists the differences."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from kogata.coding.budget import Budget
from kogata.coding.plane import FLOAT_DTYPES, INTEGER_DTYPES, PlaneKind
from kogata.storage.manifest import Entry, inflated, parsed, pieces


def entries_of(data: bytes, rest: int, budget: Budget) -> list[Entry]:
    """The entries of a deflated manifest; ``rest`` is the number of bytes that follow it in the file.

    Raises KeyError, TypeError or ValueError when the manifest is damaged.
    """
    manifest = cast("Mapping[str, Any]", parsed(inflated(data, zlib.MAX_WBITS, budget)))
    sites = cast("Sequence[Any]", manifest["sites"])
    entries: list[Entry] = [["weight", [pieces(name) for name in names], _node(tree)] for names, tree in sites]
    entries += [["buffer", pieces(name), dtype, _plane(plane)] for name, (dtype, plane) in manifest["buffers"].items()]
    for path, header in manifest.get("activations", {}).items():
        settings = {key: value for key, value in header.items() if key != "kind"}
        entries.append(["quantizer", pieces(path), header["kind"], settings])
    entries += [["kept", pieces(path), places] for path, places in manifest.get("kept", {}).items()]
    if "graph" in manifest:  # the graph fills the rest of the file after the planes
        numbers = {str(names[0]): number for number, (names, _) in enumerate(sites)}
        entries.append(["graph", rest - sum(_lengths(entries))])
        for name, (site, path, transposed) in manifest["graph"].items():
            entries.append(["bound", numbers[site], pieces(name), path, transposed])
    return entries


def _node(tree: Sequence[Any]) -> list[Any]:
    name, header, planes, parts = tree
    return [
        name, header, {key: _plane(plane) for key, plane in planes.items()}, {key: _node(part) for key, part in parts.items()},
    ]  # fmt: skip


def _plane(entry: Sequence[Any]) -> list[Any]:
    kind, shape, dtype, alphabet, length = entry
    if kind == PlaneKind.SYMBOLS:
        return [kind, shape, length, alphabet]
    if kind == PlaneKind.MASK:
        return [kind, shape, length]
    if dtype not in {PlaneKind.FLOATS: FLOAT_DTYPES, PlaneKind.INTEGERS: INTEGER_DTYPES}[PlaneKind(kind)]:
        raise ValueError(f"it declares a plane of {str(kind)!r} of type {str(dtype)[:80]!r}")
    return [dtype, shape, length]


def _lengths(entries: Sequence[Entry]) -> list[int]:
    """The coded length of each plane."""
    found: list[int] = []

    def walk(node: Sequence[Any]) -> None:
        found.extend(plane[2] for plane in node[2].values())
        for part in node[3].values():
            walk(part)

    for entry in entries:
        if entry[0] == "weight":
            walk(entry[2])
        elif entry[0] == "buffer":
            found.append(entry[3][2])
    return found

"""A reader of ``.kogata`` files, written from ``docs/format.md`` alone: the proof that the page suffices.

It imports nothing of Kogata. Section numbers are those of the page. It is written to be compared with the page, not to be fast.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.storage.reader_coders import FLOATS, Array, Plane, decoded, refuse, unzigzag, varint
from tests.storage.reader_forms import FORMS, converted, product_of

# 1. Container


def payload_of(data: bytes) -> tuple[int, bytes]:
    """The schema and the payload of a file."""
    (size,) = struct.unpack_from("<Q", data)
    refuse(2 <= size <= 4096)
    said = json.loads(data[8 : 8 + size])["__metadata__"]
    schema, tool, payload = said["schema"], said["tool"], data[8 + size :]
    digest = hashlib.sha256(f"kogata {schema} {tool} ".encode("ascii") + payload).hexdigest()
    text = (
        f'{{"__metadata__":{{"format":"kogata","schema":"{schema}","sha256":"{digest}","tool":{json.dumps(tool)}}},'
        f'"payload":{{"dtype":"U8","shape":[{len(payload)}],"data_offsets":[0,{len(payload)}]}}}}'
    ).encode()
    text += b" " * (-len(text) % 8)
    refuse(data[: 8 + size] == struct.pack("<Q", len(text)) + text and schema in ("1", "2"))
    return int(schema), payload


# 2. Manifest


def entries_of(manifest: bytes) -> list[Any]:
    inflater = zlib.decompressobj(-15)
    text = inflater.decompress(manifest, 1 << 24)
    refuse(inflater.eof and not inflater.unused_data)
    size, at = varint(text, 0)
    patterns, at = json.loads(text[at : at + size]), at + size
    count, at = varint(text, at)
    which: list[int] = []
    for _ in range(count):
        kind, at = varint(text, at)
        which.append(kind)
    rows: list[Iterator[list[int]]] = []
    for kind, pattern in enumerate(patterns):
        columns: list[list[int]] = []
        for _ in range(holes(pattern)):
            column, value = [], 0
            for _ in range(which.count(kind)):
                step, at = varint(text, at)
                value += unzigzag(step)
                column.append(value)
            columns.append(column)
        rows.append(iter([list(row) for row in zip(*columns, strict=True)]))
    refuse(at == len(text))
    return [filled(patterns[kind], iter(next(rows[kind], []))) for kind in which]


def holes(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(holes(part) for part in (value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, int) and not isinstance(value, bool))


def filled(value: Any, numbers: Iterator[int]) -> Any:
    if isinstance(value, dict):
        return {key: filled(part, numbers) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, numbers) for part in value]
    return next(numbers) if holes(value) else value


def name_of(parts: Sequence[Any]) -> str:
    return "".join(map(str, parts))


# The file as a whole


class File:
    """What a file holds: weights and buffers by name, with the name of their float type, and everything else."""

    def __init__(self, data: bytes) -> None:
        schema, payload = payload_of(data)
        (size,) = struct.unpack_from("<I", payload)
        self.rest = payload[4 + size :]
        self.weights: dict[str, tuple[Array, str]] = {}
        self.exact: dict[str, bool] = {}  # whether no sum of products was needed
        self.buffers: dict[str, tuple[Array, str]] = {}
        self.quantizers, self.kept = dict[str, tuple[str, Any]](), dict[str, list[int]]()
        self.graph, self.graph_length = b"", 0
        self.bound: dict[str, tuple[str, str, bool]] = {}
        self.extra: dict[str, Any] = {}
        self.parts: dict[tuple[str, str], tuple[Array, str]] = {}
        tensors: list[str] = []
        for kind, *entry in entries_of(payload[4 : 4 + size]) if schema == 2 else old_entries(payload[4 : 4 + size]):
            if kind == "weight":
                names = [name_of(name) for name in entry[0]]
                tensors.append(names[0])
                tensor = self.node(entry[1], names[0], "")
                for name in names:
                    self.weights[name] = tensor
                    self.exact[name] = not product_of(entry[1])
            elif kind in ("buffer", "integers"):
                name, dtype = name_of(entry[0]), entry[1]
                tensors.append(name)
                if kind == "integers":
                    self.buffers[name] = np.array(entry[3], np.int64).astype(dtype).reshape(entry[2]), dtype
                else:
                    array = self.plane(entry[2])
                    floats = entry[2][0] in FLOATS
                    self.buffers[name] = (converted(array, entry[2][0], dtype) if floats else array), dtype
            elif kind == "same":
                tensors.append(name_of(entry[0]))
                self.buffers[tensors[-1]] = self.buffers[name_of(entry[1])]
            elif kind == "quantizer":
                self.quantizers[name_of(entry[0])] = entry[1], entry[2]
            elif kind == "extra":
                self.extra[name_of(entry[0])] = self.value(entry[1])
            elif kind == "kept":
                self.kept[name_of(entry[0])] = entry[1]
            elif kind == "full":
                refuse(all(size >= 1 for size in entry[1].values()))
            elif kind == "graph":
                self.graph_length = entry[0]
            elif kind == "bound":
                name = tensors[entry[0]]
                self.bound[name if entry[1] is None else name_of(entry[1])] = name, entry[2], entry[3]
            else:
                refuse(kind == "provider")
        self.graph = self.rest
        refuse(schema == 1 or len(self.graph) == self.graph_length)

    def value(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, *entry = value
        if kind == "float":
            return float.fromhex(entry[0])
        if kind == "tensor":
            array = self.plane(entry[1])
            return converted(array, entry[1][0], entry[0]) if entry[1][0] in FLOATS else array.astype(entry[0])
        refuse(kind in ("list", "tuple", "dict"))
        parts = [self.value(part) for part in entry[0]]
        return {"list": list, "tuple": tuple, "dict": dict}[kind](parts)

    def plane(self, entry: Sequence[Any]) -> Array:
        typed, shape, length, *alphabet = entry
        data, self.rest = self.rest[:length], self.rest[length:]
        refuse(len(data) == length)
        return decoded(data, Plane(typed, shape, *alphabet))

    def node(self, node: Sequence[Any], weight: str, path: str) -> tuple[Array, str]:
        tag, header, planes, parts = node
        arrays = {name: self.plane(plane) for name, plane in planes.items()}
        tensors = {name: self.node(part, weight, f"{path}{name}.") for name, part in parts.items()}
        typed = next((plane[0] for plane in planes.values()), "")
        refuse(tag in FORMS)
        self.parts[weight, path.rstrip(".")] = found = FORMS[tag](header, arrays, tensors, typed)
        return found


def old_entries(manifest: bytes) -> list[Any]:
    """10. Schema 1, as entries of schema 2; the graph is left away."""
    said = json.loads(zlib.decompress(manifest))

    def plane(entry: Sequence[Any]) -> list[Any]:
        kind, shape, dtype, alphabet, length = entry
        return [kind if kind in ("symbols", "mask") else dtype, shape, length, *([alphabet] if kind == "symbols" else [])]

    def node(entry: Sequence[Any]) -> list[Any]:
        tag, header, planes, parts = entry
        return [tag, header, {k: plane(v) for k, v in planes.items()}, {k: node(v) for k, v in parts.items()}]

    return [
        *(["weight", [[name] for name in names], node(tree)] for names, tree in said["sites"]),
        *(["buffer", [name], dtype, plane(entry)] for name, (dtype, entry) in said["buffers"].items()),
        *(["quantizer", [name], header["kind"], header] for name, header in said.get("activations", {}).items()),
        *(["kept", [name], places] for name, places in said.get("kept", {}).items()),
    ]

"""What a small file may make a reader do: every form, coder and list that can ask for much is refused, or charged as it is."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kogata.coding import CODERS, Budget, Plane, PlaneKind, PlaneSpec, decode, encode
from kogata.coding.coder import write_varint
from kogata.errors import FileFormatError
from kogata.forms.base import Form, nodes
from kogata.storage.layout import file_header, plane_entry
from kogata.storage.load import load
from kogata.storage.manifest import write_manifest
from kogata.storage.read import read_file
from kogata.storage.write import save
from tests.storage.zoo import every_form

MIB = 1 << 20
HUGE = 1 << 32


def written(path: Path, manifest: bytes, planes: bytes = b"") -> Path:
    """A file with a right checksum around any manifest."""
    payload = struct.pack("<I", len(manifest)) + manifest + planes
    path.write_bytes(file_header(2, "0.1.0", payload) + payload)
    return path


def with_patterns(text: str) -> bytes:
    """A manifest whose patterns are this text, with no entry."""
    body = write_varint(len(text)) + text.encode() + write_varint(0)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


class Planes:
    """Planes and the bytes that code them, in order."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, plane: Plane) -> list[object]:
        coded = encode(plane).data
        self.data += coded
        return plane_entry(plane.spec, len(coded))

    def leaf(self, *shape: int) -> list[Any]:
        return [
            "dense",
            {"role": "matrix", "dtype": "float32"},
            {"values": self.add(Plane.floats(np.ones(shape, np.float32)))},
            {},
        ]


def one_symbol(planes: Planes, count: int) -> list[Any]:
    """A codebook of ``count`` entries that are all one symbol, which Huffman codes in no bits."""
    data = encode(Plane.symbols(np.zeros(1 << 10, np.uint8), 3), tuple(c for c in CODERS if c.name == "huffman")).data
    planes.data += data
    return ["codebook", {}, {"index": ["symbols", [count], len(data), 3]}, {"table": planes.leaf(3)}]


def deep(planes: Planes, depth: int) -> list[Any]:
    node = planes.leaf(2)
    for _ in range(depth):
        node = ["sum", {}, {}, {"terms.0": node}]
    return node


HOSTILE: Mapping[str, Callable[[Planes], list[Any]]] = {
    "one symbol": lambda planes: one_symbol(planes, HUGE),
    "tied": lambda p: ["tied", {"map": ["hash", {"seed": 1}], "shape": [1 << 14, 1 << 14]}, {}, {"base": p.leaf(4)}],
    "crops": lambda p: ["tied", {"map": ["crops", {"extent": HUGE - 1}], "shape": [1, 1, 1, 1]}, {}, {"base": p.leaf(1)}],
    "stacked": lambda p: ["stacked", {"kernel": [20_001, 20_001]}, {"member": p.add(Plane.symbols(np.zeros(1, np.uint8), 1))},
                          {"filters.0": p.leaf(1, 1, 1, 1)}],
    "product": lambda p: ["product", {"equation": "ab,ac,bd->ab", "shape": [2, 2]}, {},
                          {"a": p.leaf(2, 2), "b": p.leaf(2, 1 << 12), "c": p.leaf(2, 1 << 12)}],
    "wide product": lambda p: ["product", {"equation": "a,b,c,d->abcd", "shape": [1 << 40]}, {},
                               {n: p.leaf(1 << 10) for n in "abcd"}],
    "displacement": lambda p: ["displacement", {"shape": [1 << 12, 1 << 12]}, {}, {n: p.leaf(2, 1 << 12) for n in "gh"}],
    "depth": lambda p: deep(p, 20),
    "path": lambda p: ["sum", {}, {}, {"x" * (1 << 20): deep(p, 10)}],
    "texts as sizes": lambda p: ["tied", {"map": ["hash", {"seed": 1}], "shape": ["ab", HUGE]}, {}, {"base": p.leaf(1)}],
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "product"])
def test_small_files_that_ask_for_much_are_refused_before_memory_is_reserved(name: str, tmp_path: Path) -> None:
    planes = Planes()
    node = HOSTILE[name](planes)
    path = written(tmp_path / "hostile.kogata", write_manifest([["weight", [["w"]], node]]), planes.data)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"hostile\.kogata"):
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_product_that_is_small_in_every_step_is_read(tmp_path: Path) -> None:
    planes = Planes()
    node = HOSTILE["product"](planes)
    path = written(tmp_path / "product.kogata", write_manifest([["weight", [["w"]], node]]), planes.data)
    (form,) = read_file(path).forms.values()
    assert torch.equal(form.dense(), torch.full((2, 2), 2.0**24))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        "[" + "{}," * 4_000_000 + "{}]",
        "[" + "9" * 30 + "]",
        "[1e999]",
        "[0.5]",
        "[NaN]",
        "{}",
        '["\\ud800"]x',
    ],
    ids=["deep", "many", "long number", "infinite", "fraction", "not a number", "no list", "trailing"],
)
def test_patterns_that_no_writer_makes_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"file\.kogata"):
        read_file(written(tmp_path / "file.kogata", with_patterns(text)))


def test_the_limit_follows_the_file_and_the_model_and_can_be_set(tmp_path: Path) -> None:
    path, count = tmp_path / "file.kogata", 10 * MIB
    model = nn.Embedding(count, 1)
    nn.init.zeros_(model.weight)
    save(model, path)
    assert path.stat().st_size < 2000
    with pytest.raises(FileFormatError, match="max_bytes"):
        read_file(path)
    assert read_file(path, max_bytes=1 << 30).forms
    loaded = load(path, into=nn.Embedding(count, 1))
    assert not loaded.get_parameter("weight").any()  # a model of this size takes as much memory anyway
    with pytest.raises(FileFormatError, match=r"over the limit of 1,024 "):
        load(path, into=nn.Embedding(count, 1), max_bytes=1024)


@pytest.mark.parametrize("name", every_form())
def test_the_charge_for_a_form_covers_what_its_tensor_takes(name: str) -> None:
    form = every_form()[name]

    def rebuilt(node: Form) -> Form:
        header, parts = json.loads(json.dumps(node.header())), {key: rebuilt(part) for key, part in node.parts().items()}
        arrays = {key: plane.array for key, plane in node.planes().items()}
        cost = type(node).cost(header, arrays, parts)
        twin = type(node).restore(header, arrays, parts)
        assert cost.keep >= twin.dense().nbytes, type(node).__name__
        assert cost.work >= twin.shape.numel()
        return twin

    assert [path for path, _ in nodes(rebuilt(form))] == [path for path, _ in nodes(form)]


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, len(CODERS) - 1), size=st.integers(0, 5000), alphabet=st.sampled_from([1, 2, 17, 256, 300, 65536]))
def test_a_coder_without_budget_decodes_nothing(which: int, size: int, alphabet: int) -> None:
    coder = CODERS[which]
    rng = np.random.default_rng(size)
    for plane in (
        Plane.symbols(rng.integers(alphabet, size=size), alphabet),
        Plane.mask(rng.random(size) < 0.1),
        Plane.floats(rng.random(size)),
        Plane.integers(rng.integers(5, size=size)),
    ):
        body = coder.encode(plane) if coder.accepts(plane.spec) else None
        if body is None:
            continue
        budget = Budget()
        decode(bytes([coder.tag]) + body, plane.spec, budget)
        assert budget.kept >= plane.array.nbytes
        if budget.work:
            with pytest.raises(FileFormatError, match="max_bytes"):
                decode(bytes([coder.tag]) + body, plane.spec, Budget(budget.work / 16 - 1))


def test_a_plane_larger_than_the_budget_is_refused_before_it_is_decoded() -> None:
    spec = PlaneSpec(PlaneKind.SYMBOLS, (1 << 30,), "uint8", 2)
    with pytest.raises(FileFormatError, match="1,073,741,824 bytes"):
        decode(b"\x04", spec, Budget(MIB))

"""The format: frozen tags, files of earlier schemas, and an independent reader that knows ``docs/format.md`` only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from kogata.calibration.prepare import prepare
from kogata.coding import CODERS, Budget, Coder, Plane
from kogata.engines import OnnxRuntime
from kogata.errors import UsageError
from kogata.forms import FORMS
from kogata.forms.tied import MAPS
from kogata.job import Task
from kogata.methods import SVD, KMeans, RoundToNearest
from kogata.methods.base.compose import chain, only
from kogata.network.quantizers import QUANTIZERS
from kogata.network.sites import buffers_of, sites_of
from kogata.storage.layout import plane_entry
from kogata.storage.load import load
from kogata.storage.manifest import joined, pieces, read_manifest, write_manifest
from kogata.storage.read import read_file
from kogata.storage.write import pack
from kogata.tasks.networks.lenet import lenet5, lenet300
from kogata.tasks.networks.resnet import cifar_resnet
from kogata.testing.comparisons import assert_equal
from tests.storage import reader, reader_coders, reader_forms
from tests.storage.zoo import FORMS_OF_SCHEMA_1, Zoo, zoo

# What files in the world say. A tag may be added, never changed, taken away or given another meaning.
FORM_TAGS = {
    "dense", "masked", "affine", "codebook", "vectors", "binary", "product", "tied", "permuted", "sum", "stacked",
    "displacement", "fastfood", "transposed", "separate", "zero-row",
}  # fmt: skip
MAP_TAGS = {"hash", "repeat", "opposite", "orbit", "crops", "circulant", "diagonal"}
QUANTIZER_TAGS = {"static", "dynamic", "sign"}
CODER_TAGS = {
    0: "packed", 1: "bitmap", 2: "zstd", 3: "adaptive", 4: "huffman", 5: "static rANS", 6: "relative index",
    7: "shifted symbols", 8: "context mixing", 9: "float bytes",
}  # fmt: skip

SCHEMA_1 = Path(__file__).parent / "schema1.kogata"
ARTIFACTS = Path(__file__).parents[2] / "benchmarks" / "artifacts"


def test_tags_are_unique_and_frozen() -> None:
    for kinds, tags in ((FORMS, FORM_TAGS), (MAPS, MAP_TAGS), (QUANTIZERS, QUANTIZER_TAGS)):
        assert sorted(kind.TAG for kind in kinds) == sorted(tags)
        assert all("TAG" in vars(kind) for kind in kinds), "a tag is declared in its own class"
    assert sorted((coder.tag, coder.name) for coder in CODERS) == sorted(CODER_TAGS.items())
    assert set(reader_coders.CODERS) == set(CODER_TAGS)
    assert set(reader_forms.FORMS) == FORM_TAGS


def test_a_file_of_schema_1_loads_exactly() -> None:
    model, wanted = load(SCHEMA_1, into=Zoo(FORMS_OF_SCHEMA_1)), zoo(FORMS_OF_SCHEMA_1)
    assert_equal(model.state_dict(), wanted.state_dict())
    assert pack(model).data == pack(wanted).data
    assert read_file(SCHEMA_1).kept == {"blocks": (0, 2, 3), "blocks.1": (0, 2)}


@pytest.mark.parametrize("name", ["mnist-lenet300", "mnist-lenet5", "fashion-lenet300", "fashion-lenet5"])
def test_committed_artifacts_load_and_become_smaller(name: str, tmp_path: Path) -> None:
    """They are of schema 1. The engine runs both files alike, bit for bit."""
    build = lenet5 if name.endswith("5") else lenet300
    path, again = ARTIFACTS / f"{name}.kogata", tmp_path / "again.kogata"
    model = load(path, into=build())
    again.write_bytes(pack(model, read_file(path).graph).data)
    assert again.stat().st_size < path.stat().st_size
    assert_equal(load(again, into=build()).state_dict(), model.state_dict())
    images = torch.from_numpy(np.random.default_rng(0).random((3, 1, 28, 28), np.float32))
    old, new = (OnnxRuntime().open_file(read_file(file), model, images)(images) for file in (path, again))
    assert torch.equal(old, new)


def assert_read_alike(file: reader.File, model: nn.Module) -> None:
    """Every tensor of a file as the independent reader sees it: exact, but for the rounding of sums of products."""
    seen: set[str] = set()
    for site in sites_of(model):
        wanted = getattr(model.get_submodule(site.module), site.parameter).detach()
        for name in (site.name, *site.aliases):
            seen.add(name)
            array, dtype = file.weights[name]
            assert dtype == str(wanted.dtype).removeprefix("torch.")
            values = wanted.float().numpy() if dtype == "bfloat16" else wanted.numpy()
            assert (array.dtype, array.shape) == (values.dtype, values.shape)
            if file.exact[name]:
                assert array.tobytes() == np.ascontiguousarray(values).tobytes(), name
            else:
                assert np.linalg.norm(array - values) <= 1e-6 * np.linalg.norm(values), name
    assert seen == set(file.weights)
    buffers = buffers_of(model)
    assert file.buffers.keys() == buffers.keys()
    for name, (array, dtype) in file.buffers.items():
        assert dtype == str(buffers[name].dtype).removeprefix("torch.")
        assert np.array_equal(array, buffers[name].numpy())


def test_the_page_suffices_for_every_form() -> None:
    old, new = zoo(FORMS_OF_SCHEMA_1), zoo()
    for data, model in ((SCHEMA_1.read_bytes(), old), (pack(new).data, new)):
        file = reader.File(data)
        assert_read_alike(file, model)
        assert file.kept == {"blocks": [0, 2, 3], "blocks.1": [0, 2]}
        assert {tag for tag, _ in file.quantizers.values()} == QUANTIZER_TAGS
        assert sum(file.exact.values()) >= len(file.exact) - 7


def skewed(alphabet: int, *shape: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(alphabet)
    return (rng.random(shape) ** 3 * alphabet).astype(np.int64)


def grown(*shape: int) -> NDArray[np.bool_]:
    """A mask with dense and empty columns, and clusters."""
    rng = np.random.default_rng(1)
    cells = rng.random(shape).reshape(shape[0], -1)
    return ((cells + np.roll(cells, 1, 1)) / 2 < rng.random(cells.shape[1]) * 0.6).reshape(shape)


FLOATS = np.random.default_rng(2).normal(0, 0.1, (30, 11))
PLANES: dict[str, Plane] = {
    "symbols": Plane.symbols(skewed(11, 40, 3, 3, 3), 11),
    "bytes": Plane.symbols(skewed(256, 30, 20), 256),
    "words": Plane.symbols(skewed(5000, 300), 5000),
    "all words": Plane.symbols(skewed(65536, 50), 65536),
    "one symbol": Plane.symbols(np.full((4, 5), 3), 7),
    "an alphabet of one": Plane.symbols(np.zeros(9, np.int64), 1),
    "no symbols": Plane.symbols(np.zeros((0, 3), np.int64), 5),
    "a scalar": Plane.symbols(np.array(2), 5),
    "mask": Plane.mask(grown(24, 40)),
    "kernels": Plane.mask(grown(16, 6, 5, 5)),
    "tall": Plane.mask(np.ascontiguousarray(grown(9, 60).T)),
    "sparse": Plane.mask(np.random.default_rng(3).random((20, 400)) < 0.003),
    "row": Plane.mask(grown(1, 500).ravel()),
    "late": Plane.mask(np.arange(67_200).reshape(24, 2800) % 7 * (np.arange(24)[:, None] > 22) == 3),  # 2^16 zeros come first
    "full": Plane.mask(np.ones((7, 9), np.bool_)),
    "no cells": Plane.mask(np.zeros((0, 4), np.bool_)),
    "float32": Plane.floats(FLOATS.astype(np.float32)),
    "float16": Plane.floats(FLOATS.astype(np.float16)),
    "float64": Plane.floats(FLOATS),
    "bfloat16": Plane.floats((FLOATS.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), "bfloat16"),
    "odd floats": Plane.floats(np.array([np.nan, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)),
    "no floats": Plane.floats(np.zeros(0, np.float32)),
    "integers": Plane.integers(skewed(900, 40).astype(np.int32) - 400),
    "large": Plane.integers(np.array([-(1 << 60), -(1 << 60) + 5])),
    "unsigned": Plane.integers(np.array([1 << 63, 0], np.uint64)),
    "flags": Plane.integers(np.array([[True, False]])),
}  # fmt: skip


@pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)
def test_the_page_suffices_for_every_coder(coder: Coder) -> None:
    tried = 0
    for name, plane in PLANES.items():
        body = coder.encode(plane) if coder.accepts(plane.spec) else None
        if body is None:
            continue
        entry: list[Any] = plane_entry(plane.spec, 0)
        found = reader_coders.decoded(bytes([coder.tag]) + body, reader_coders.Plane(entry[0], entry[1], *entry[3:]))
        if plane.spec.kind in ("floats", "integers"):
            assert found.tobytes() == plane.array.tobytes(), name
        assert np.array_equal(found, plane.array, equal_nan=plane.array.dtype.kind == "f"), name
        tried += 1
    assert tried >= 3


def test_a_graph_costs_what_it_must() -> None:
    """Weights, factors and running statistics lie in the file once, and the page says where the graph finds them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, images = cifar_resnet(8, width=0.5), torch.randn(4, 3, 32, 32)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.get_buffer("running_mean"))
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    job = chain(only(SVD(rank=0.2), "*.weight"), RoundToNearest(bits=8)).apply(prepare(net, Task(calibration=[images])))
    graph = OnnxRuntime().graph(job.model, images)
    assert graph is not None
    file = reader.File(pack(job.model, graph).data)
    assert file.bound == dict(graph.bindings)
    places = {tensor for tensor, _, _ in graph.bindings.values()}
    assert {name for name, tensor in buffers_of(job.model).items() if tensor.is_floating_point()} <= places
    assert any(path for _, path, _ in graph.bindings.values())
    plain = onnx.ModelProto.FromString(zstandard.ZstdDecompressor().decompress(file.graph))
    left = sum(len(init.raw_data) for init in plain.graph.initializer)
    assert left < 64
    for init in plain.graph.initializer:
        if init.name in file.bound:
            tensor, path, _ = file.bound[init.name]
            found = file.buffers[tensor] if tensor in file.buffers else file.parts[tensor, path]
            assert found[0].size == int(np.prod(init.dims))


def test_a_manifest_costs_a_few_bytes_for_each_tensor() -> None:
    net = cifar_resnet(20, width=0.25)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("num_batches_tracked").fill_(93750)
    job = KMeans(clusters=8).apply(prepare(net, Task(calibration=[torch.randn(4, 3, 32, 32)])))
    packed, tensors = pack(job.model), len(sites_of(job.model)) + len(buffers_of(job.model))
    assert packed.manifest_bytes < 5 * tensors  # 10 in schema 1
    assert not any(plane.site.endswith("num_batches_tracked") for plane in packed.planes)


JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.integers(1 - 2**53, 2**53 - 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(JSON, max_size=4), max_size=6))
def test_manifests_come_back_as_they_were(entries: list[Any]) -> None:
    data = write_manifest(entries)
    assert list(read_manifest(data, Budget())) == entries
    assert reader.entries_of(data) == entries


@pytest.mark.parametrize("value", [0.5, 2**53, -(2**53), b"", np.int64(1), float("nan")])
def test_what_a_header_cannot_hold(value: Any) -> None:
    with pytest.raises(UsageError, match="a file cannot hold the header of"):
        write_manifest([["weight", [["w"]], ["mine", {"x": [value]}, {}, {}]]])


@settings(max_examples=200, deadline=None)
@given(st.text("a.0123_", max_size=25))
def test_names_come_back_as_they_were(name: str) -> None:
    assert joined(pieces(name)) == name


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flipped(data, 20), lambda data: flipped(data, -1), lambda data: data[:-1], lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 5000) + data[8:],
    ],
)  # fmt: skip
def test_the_reader_refuses_damage_as_the_page_says(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises((reader_coders.Damaged, ValueError, KeyError)):
        reader.File(damage(pack(nn.Linear(3, 2)).data))


def test_weights_that_are_tied_lie_in_the_file_once(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.out.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.table(tokens))

    model = Words()
    (tmp_path / "m.kogata").write_bytes(pack(model).data)
    file = reader.File((tmp_path / "m.kogata").read_bytes())
    assert file.weights["table.weight"] is file.weights["out.weight"]
    loaded = load(tmp_path / "m.kogata", into=Words())
    assert loaded.get_submodule("out").weight is loaded.get_submodule("table").weight

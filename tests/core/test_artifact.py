"""The file: deterministic, whole or absent, and no byte of it trusted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from kogata import __version__
from kogata.coding import Budget, Plane, encode
from kogata.coding.coder import write_varint
from kogata.errors import DataError, FileFormatError
from kogata.forms import Codebook, Dense
from kogata.job import Job
from kogata.methods import SVD, KMeans, MagnitudePruning, RoundToNearest
from kogata.methods.base.compose import chain, only
from kogata.network import surgery
from kogata.network.batch import call, tensors
from kogata.network.channels.groups import coupled, remove
from kogata.network.quantizers import Static, attach_quantizer
from kogata.network.sites import form_at, sites_of
from kogata.storage.dense import dense_bytes
from kogata.storage.layout import SCHEMA, Artifact, file_header
from kogata.storage.load import load
from kogata.storage.manifest import MAX_MANIFEST, joined, read_manifest, write_manifest
from kogata.storage.read import read_file
from kogata.storage.write import pack, write_file
from kogata.system.atomic import writing
from kogata.testing.comparisons import assert_equal, assert_untouched, batch_of, snapshot, weights
from kogata.testing.models import ConvNet, job_of
from tests.core.architectures import ARCHITECTURES, built, some


@pytest.fixture(scope="module")
def job() -> Job:
    """A file with every form in it."""
    return chain(
        only(SVD(rank=4), "hidden"), only(MagnitudePruning(sparsity=0.7), "[hd]*"), only(KMeans(clusters=6), "[hc]*"),
        only(RoundToNearest(bits=3, group=8), "out"),
    ).apply(job_of("conv"))  # fmt: skip


@pytest.fixture(scope="module")
def data(job: Job) -> bytes:
    return pack(job.model).data


def read_bytes(data: bytes, folder: Path) -> Artifact:
    path = folder / "m.kogata"
    path.write_bytes(data)
    return read_file(path)


def manifest_of(data: bytes) -> tuple[list[Any], bytes]:
    """The entries of a file's manifest and the planes behind it."""
    start = 8 + struct.unpack_from("<Q", data)[0]
    size = struct.unpack_from("<I", data, start)[0]
    return list(read_manifest(data[start + 4 : start + 4 + size], Budget())), data[start + 4 + size :]


def file_of(manifest: list[Any], planes: bytes, *, schema: int = SCHEMA, tail: bytes = b"") -> bytes:
    """A file with a valid checksum, whatever it says."""
    return file_with(write_manifest(manifest), planes + tail, schema=schema)


def file_with(manifest: bytes, planes: bytes = b"", *, schema: int = SCHEMA) -> bytes:
    """The same, of a manifest as bytes."""
    payload = struct.pack("<I", len(manifest)) + manifest + planes
    return file_header(schema, __version__, payload) + payload


def deflated(body: bytes) -> bytes:
    """A bare DEFLATE stream."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def test_the_tool_of_this_test_writes_what_pack_writes(data: bytes, job: Job, tmp_path: Path) -> None:
    manifest, planes = manifest_of(data)
    found = read_bytes(file_of(manifest, planes), tmp_path)
    assert len(found.forms) == len(sites_of(job.model))


def test_is_a_safetensors_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
        assert list(file.keys()) == ["payload"]
        assert file.metadata()["format"] == "kogata"
        assert file.metadata()["schema"] == str(SCHEMA)
        assert file.get_tensor("payload").dtype == np.uint8
    assert struct.unpack_from("<Q", data)[0] % 8 == 0


def test_same_model_same_bytes(data: bytes, job: Job) -> None:
    assert pack(job.model).data == data
    assert pack(surgery.clone(job.model, share=False)).data == data


def test_parts_sum_to_the_file(job: Job) -> None:
    packed = pack(job.model)
    assert packed.header_bytes + packed.manifest_bytes + packed.graph_bytes + sum(p.bytes for p in packed.planes) == len(
        packed.data
    )
    assert {plane.site for plane in packed.planes} >= {site.name for site in sites_of(job.model)}


def test_reading_says_how_the_bytes_are_spent(data: bytes, job: Job, tmp_path: Path) -> None:
    assert read_bytes(data, tmp_path).packed == pack(job.model)


def test_dense_bytes_is_a_plain_safetensors_file(job: Job) -> None:
    values = sum(t.numel() * t.element_size() for t in job.reference.state_dict().values())
    assert values < dense_bytes(job.reference) < values + 2000
    assert dense_bytes(job.model) == dense_bytes(job.reference)


def test_truncated_anywhere(data: bytes, tmp_path: Path) -> None:
    for length in {0, 1, 7, 8, 9, 60, 150, 300, 301, 400, len(data) // 2, len(data) - 9, len(data) - 1}:
        with pytest.raises(FileFormatError, match=r"m\.kogata"):
            read_bytes(data[:length], tmp_path)


def test_extra_bytes(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"m\.kogata"):
        read_bytes(data + b"\0", tmp_path)
    with pytest.raises(FileFormatError, match="1 bytes follow its last plane"):
        read_bytes(file_of(*manifest_of(data), tail=b"\0"), tmp_path)


def test_any_flipped_bit_is_seen(data: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = 8 + struct.unpack_from("<Q", data)[0]
    places = [*range(header), *rng.integers(header, len(data), 150)]  # every byte of the header
    for place in places:
        damaged = bytearray(data)
        damaged[int(place)] ^= 1 << int(rng.integers(8))
        with pytest.raises(FileFormatError):
            read_bytes(bytes(damaged), tmp_path)


def test_damaged_planes_behind_a_valid_checksum(data: bytes, tmp_path: Path) -> None:
    """Without the checksum's help a flipped plane is refused or read as other values: never another exception."""
    manifest, planes = manifest_of(data)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(planes)
        damaged[int(rng.integers(len(planes)))] ^= 1 << int(rng.integers(8))
        try:
            read_bytes(file_of(manifest, bytes(damaged)), tmp_path)
        except FileFormatError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"\0" * 200, b"PK\x03\x04" + b"\0" * 100, b'\x10\0\0\0\0\0\0\0{"payload": 1}  ']
)
def test_other_files(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"is damaged or not a \.kogata file"):
        read_bytes(text, tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        read_file(tmp_path / "none.kogata")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_file(tmp_path)


@pytest.mark.parametrize("schema", ["0", "-7", "x", "1.5", "²"])
def test_a_schema_that_is_no_number_from_1_is_refused(schema: str, data: bytes, tmp_path: Path) -> None:
    size = struct.unpack_from("<Q", data)[0]
    payload = data[8 + size :]
    said = json.loads(data[8 : 8 + size])
    said["__metadata__"] |= {
        "schema": schema, "sha256": hashlib.sha256(f"kogata {schema} {__version__} ".encode() + payload).hexdigest(),
    }  # fmt: skip
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises(FileFormatError, match=r"schema is .* no number from 1"):
        read_bytes(struct.pack("<Q", len(header)) + header + payload, tmp_path)


def test_a_newer_schema_says_to_upgrade(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=rf"schema {SCHEMA + 1}.*Upgrade kogata"):
        read_bytes(file_of(*manifest_of(data), schema=SCHEMA + 1), tmp_path)


Edit = Callable[[list[Any]], object]


def entry(manifest: list[Any], name: str) -> Any:
    """The entry of a weight or buffer."""
    return next(
        found for found in manifest
        if found[0] in ("weight", "buffer", "integers") and joined(found[1][0] if found[0] == "weight" else found[1]) == name
    )  # fmt: skip


def change(name: str, *keys: Any, to: Any) -> Edit:
    """Set one value of one entry; of a weight, of its tree of forms: tag, header, planes, parts."""

    def edit(manifest: list[Any]) -> None:
        place = entry(manifest, name)
        for key in (2, *keys[:-1]) if place[0] == "weight" else keys[:-1]:
            place = place[key]
        assert place[keys[-1]] != to
        place[keys[-1]] = to

    return edit


NAME, HEADER, PLANES, PARTS = range(4)
TYPE, SHAPE, LENGTH, ALPHABET = range(4)
FACTOR = ("hidden.weight", PARTS, "factors.0")
HOSTILE: dict[str, Edit] = {
    "huge plane": change("out.weight", PLANES, "code", SHAPE, to=[1 << 20, 1 << 20]),
    "overflowing plane": change("out.weight", PLANES, "code", SHAPE, to=[1 << 33, 1 << 33]),
    "negative shape": change("out.weight", PLANES, "code", SHAPE, to=[-6, -32]),
    "one negative axis": change("out.weight", PLANES, "code", SHAPE, to=[-6, 32]),
    "other shape": change("out.weight", PLANES, "code", SHAPE, to=[6, 31]),
    "shape of text": change("out.weight", PLANES, "code", SHAPE, to="6,32"),
    "deep shape": change("out.weight", PLANES, "code", SHAPE, to=[1] * 100),
    "huge alphabet": change("conv.weight", PLANES, "index", ALPHABET, to=10**9),
    "no alphabet": change("conv.weight", PLANES, "index", ALPHABET, to=0),
    "negative alphabet": change("conv.weight", PLANES, "index", ALPHABET, to=-1),
    "other type": change("conv.weight", PLANES, "index", TYPE, to="float32"),
    "unknown type": change("conv.weight", PLANES, "index", TYPE, to="pickle"),
    "object type": change("conv.weight", PLANES, "index", TYPE, to="object"),
    "wide type": change("conv.weight", PLANES, "index", TYPE, to="V1000000000"),
    "type of a list": change("conv.weight", PLANES, "index", TYPE, to=["symbols"]),
    "negative length": change("conv.weight", PLANES, "index", LENGTH, to=-1),
    "huge length": change("conv.weight", PLANES, "index", LENGTH, to=10**12),
    "length of text": change("conv.weight", PLANES, "index", LENGTH, to="1"),
    "no length": change("conv.weight", PLANES, "index", LENGTH, to=0),
    "short entry": change("conv.weight", PLANES, "index", to=["symbols"]),
    "no plane": change("conv.weight", PLANES, to={}),
    "no part": change("conv.weight", PARTS, to={}),
    "unknown form": change("conv.weight", NAME, to="pickle"),
    "other form": change("conv.weight", NAME, to="masked"),
    "form of a list": change("conv.weight", NAME, to=["codebook"]),
    "tree of nothing": change("conv.weight", PARTS, "table", to=None),
    "unknown role": change("conv.weight", PARTS, "table", HEADER, "role", to="king"),
    "unknown header": change("conv.weight", PARTS, "table", HEADER, to=[]),
    "other bits": change("out.weight", HEADER, "bits", to=99),
    "other group": change("out.weight", HEADER, "group", to=7),
    "no group": change("out.weight", HEADER, "group", to=0),
    "wrong equation": change("hidden.weight", HEADER, "equation", to="or,ri->or"),
    "equation of code": change("hidden.weight", HEADER, "equation", to="__import__('os')"),
    "equation with dots": change("hidden.weight", HEADER, "equation", to="...r,r...->..."),
    "huge product": change("hidden.weight", HEADER, "shape", to=[1 << 40, 1 << 40]),
    "negative product": change("hidden.weight", HEADER, "shape", to=[-32, -96]),
    "other mask": change(*FACTOR, PLANES, "mask", SHAPE, to=[4, 32]),
    "nothing": lambda entries: entries.clear(),
    "no weight": lambda entries: entries.remove(entry(entries, "conv.weight")),
    "a weight twice": lambda entries: entries.append(entry(entries, "conv.weight")),
    "an entry of another kind": lambda entries: entries.append(["pickle", "os.system"]),
    "an entry of nothing": lambda entries: entries.append([]),
    "an entry of text": lambda entries: entries.append("weight"),
    "buffer of another dtype": change("norm.running_mean", 2, to="object"),
    "numbers of another dtype": change("norm.num_batches_tracked", 2, to="object"),
    "more numbers than fit": change("norm.num_batches_tracked", 4, to=[0] * 9),
    "numbers of another shape": change("norm.num_batches_tracked", 3, to=[1 << 40]),
    "name of nothing": lambda entries: entry(entries, "conv.weight").__setitem__(1, []),
    "name of a mapping": lambda entries: entry(entries, "conv.weight").__setitem__(1, [[{}]]),
    "an initializer without a graph": lambda entries: entries.append(["bound", 0, None, "", False]),
    "a graph past the end": lambda entries: entries.append(["graph", 1]),
    "a graph of negative length": lambda entries: entries.append(["graph", -1]),
    "an unknown quantizer": lambda entries: entries.append(["quantizer", ["conv"], "pickle", {}]),
}  # fmt: skip


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_manifests(edit: Edit, data: bytes, tmp_path: Path) -> None:
    manifest, planes = manifest_of(data)
    edit(manifest)
    (tmp_path / "m.kogata").write_bytes(file_of(manifest, planes))
    into = ConvNet()
    before = snapshot(into)
    with pytest.raises(FileFormatError, match=r"m\.kogata"):
        load(tmp_path / "m.kogata", into=into)
    assert_untouched(into, before)


def test_an_index_past_the_table(tmp_path: Path) -> None:
    """A plane that is valid under its own alphabet, beside a table that is shorter."""
    table = encode(Plane.floats(np.zeros(2, np.float32))).data
    index = encode(Plane.symbols(np.array([[0, 1], [2, 1]], np.uint8), 3)).data
    leaf = ["dense", {"role": "table", "dtype": "float32"}, {"values": ["float32", [2], len(table)]}, {}]
    manifest = [
        ["weight", [["weight"]], ["codebook", {}, {"index": ["symbols", [2, 2], len(index), 3]}, {"table": leaf}]],
    ]
    with pytest.raises(FileFormatError, match="indices 0 to 2 into a table"):
        read_bytes(file_of(manifest, index + table), tmp_path)


def test_a_manifest_that_inflates_without_end(tmp_path: Path) -> None:
    spaces = b" " * (MAX_MANIFEST + 1)
    for data in (file_with(deflated(spaces)), file_with(zlib.compress(spaces, 9), schema=1)):
        with pytest.raises(FileFormatError, match=r"its manifest needs .* operations"):
            read_bytes(data, tmp_path)


def test_a_manifest_that_repeats_a_long_pattern_without_end(tmp_path: Path) -> None:
    """A byte for each of a million entries, all of one pattern of 100 kB: refused before the second is built."""
    pattern = json.dumps([["x" * 100_000]]).encode()
    body = write_varint(len(pattern)) + pattern + write_varint(1_000_000) + bytes(1_000_000)
    with pytest.raises(FileFormatError, match="manifest expands"):
        read_bytes(file_with(deflated(body)), tmp_path)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"null", b"\xff\xfe", b"[1e999]", b"[[0]]", b"[0,", b""])
@pytest.mark.parametrize("rest", [b"", b"\1", b"\1\0", b"\1\0" + b"\xff" * 10, b"\1\5\0", b"\xff" * 9, b"\1\0\0\0\0"])
def test_other_manifests(text: bytes, rest: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="damaged"):
        read_bytes(file_with(deflated(write_varint(len(text)) + text + rest)), tmp_path)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"[]", b"null", b"\xff\xfe", b'{"sites": 1e999}'])
def test_other_manifests_of_schema_1(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="damaged"):
        read_bytes(file_with(zlib.compress(text), schema=1), tmp_path)


def test_a_file_of_another_model_leaves_it_as_it_was(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.kogata"
    path.write_bytes(data)

    class Wider(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

    class Narrower(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(32, 5)

    class Bare(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(16, track_running_stats=False)

    for kind, reason in (
        (Wider, "lacks"),
        (Narrower, r"another model: out\.\w+ has shape \(6,.*but the model has \(5,"),
        (Bare, r"the model has no \['norm\.running_mean'"),
        (lambda: nn.Linear(2, 2), "another model"),
    ):
        into = kind()
        before = snapshot(into)
        with pytest.raises(FileFormatError, match=reason):
            load(path, into=into)
        assert_untouched(into, before)


def test_a_frozen_weight_stays_frozen(tmp_path: Path) -> None:
    job = only(KMeans(clusters=4), "hidden").apply(job_of("conv"))
    write_file(tmp_path / "m.kogata", pack(job.model))
    into = ConvNet()
    into.conv.requires_grad_(False)
    load(tmp_path / "m.kogata", into=into)
    assert {name for name, p in into.named_parameters() if not p.requires_grad} >= {"conv.weight", "conv.bias"}
    assert into.deep.weight.requires_grad


def test_loading_over_other_forms(job: Job, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.kogata").write_bytes(data)
    into = surgery.clone(SVD(rank=2).apply(job_of("conv")).model, share=False)
    load(tmp_path / "m.kogata", into=into)
    assert_equal(weights(into), weights(job.model))


def test_dense_values_are_stored_at_all_precisions(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3).double(), nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).half(), nn.Linear(3, 3))
    write_file(tmp_path / "m.kogata", pack(model))
    into = nn.Sequential(nn.Linear(3, 3).double(), nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).half(), nn.Linear(3, 3))
    load(tmp_path / "m.kogata", into=into)
    assert_equal(into.state_dict(), model.state_dict())


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(fails: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, packed = tmp_path / "m.kogata", pack(job.model)
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "write":
        genuine = tempfile.NamedTemporaryFile

        def opened(*args: Any, **kwargs: Any) -> Any:
            file = genuine(*args, **kwargs)
            monkeypatch.setattr(file, "write", full, raising=False)
            return file

        monkeypatch.setattr(tempfile, "NamedTemporaryFile", opened)
    elif fails == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*m\.kogata: No space left"):
        write_file(path, packed)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.kogata"]


def test_any_failure_leaves_no_half_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writing(tmp_path / "new.bin") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, job: Job) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_file(tmp_path / "file" / "m.kogata", pack(job.model))


def test_forms_are_trainable_after_loading(job: Job, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.kogata").write_bytes(data)
    into = load(tmp_path / "m.kogata", into=ConvNet())
    into(torch.randn(4, 3, 8, 8)).square().sum().backward()
    grads = {name for name, p in into.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert grads == {name for name, p in into.named_parameters() if p.requires_grad}
    assert all(isinstance(leaf, Dense) for site in sites_of(into) for _, leaf in form_at(into, site).leaves())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_lost_channels_loads_into_its_own_class(name: str, seed: int, tmp_path: Path) -> None:
    model, inputs = built(name)
    torch.manual_seed(seed)
    smaller = remove(model, some(coupled(model, inputs)))
    write_file(tmp_path / "m.kogata", pack(smaller))
    into = load(tmp_path / "m.kogata", into=built(name)[0])
    with torch.no_grad():
        for found, wanted in zip(tensors(call(into, inputs)), tensors(call(smaller, inputs)), strict=True):
            assert torch.equal(found, wanted)
    assert repr(into) == repr(smaller)  # the integers of every layer
    assert pack(into).data == pack(smaller).data


def test_a_smaller_layer_that_never_lost_channels_is_of_another_model(tmp_path: Path) -> None:
    """Shapes alone cannot tell a model that lost channels from one that never had them; the file says which."""
    model = ConvNet()
    model.out = nn.Linear(32, 5)
    write_file(tmp_path / "m.kogata", pack(model))
    into = ConvNet()
    before = {name: tensor.clone() for name, tensor in into.state_dict().items()}
    with pytest.raises(FileFormatError, match=r"out\.\w+ has shape \(5,.*, but the model has \(6,.*no channels were removed"):
        load(tmp_path / "m.kogata", into=into)
    assert all(torch.equal(tensor, before[name]) for name, tensor in into.state_dict().items())


def test_the_log_names_the_layers_that_are_smaller(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = ConvNet().eval(), (torch.randn(4, 3, 8, 8),)
    smaller = remove(model, some(coupled(model, inputs)))
    write_file(tmp_path / "m.kogata", pack(smaller))
    with caplog.at_level(logging.INFO, logger="kogata"):
        into = load(tmp_path / "m.kogata", into=ConvNet())
    assert "these layers are smaller than the model's: " in caplog.text
    write_file(tmp_path / "again.kogata", pack(into))  # what was removed is remembered beyond one file
    assert load(tmp_path / "again.kogata", into=ConvNet()).state_dict().keys() == smaller.state_dict().keys()
    wider = ConvNet()
    wider.out = nn.Linear(64, 6)
    with pytest.raises(FileFormatError, match="no channels were removed from a layer of that size"):
        load(tmp_path / "m.kogata", into=wider)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float16])
def test_a_loaded_model_has_the_types_of_the_file(dtype: torch.dtype, own: torch.dtype, tmp_path: Path) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        net[0].register_buffer("table", torch.ones(8), persistent=False)
        return net

    model = build().to(dtype)
    site = next(site for site in sites_of(model) if site.name == "0.weight")
    surgery.attach(model, site, Codebook.of(torch.randint(3, (8, 8)), torch.randn(3, dtype=dtype)))
    write_file(tmp_path / "m.kogata", pack(model))
    loaded = load(tmp_path / "m.kogata", into=build().to(own))
    x = torch.randn(2, 8, dtype=dtype)
    assert torch.equal(loaded(x), model(x))
    assert {
        loaded.get_submodule("0").weight.dtype,
        *(t.dtype for t in (*loaded.parameters(), *loaded.buffers()) if t.is_floating_point()),
    } == {dtype}


def test_channels_lost_before_other_steps(tmp_path: Path) -> None:
    """Forms on the smaller layers, one after the other with and without a file between."""
    job = job_of("conv")
    smaller = remove(job.model, some(coupled(job.model, batch_of(job)[0])))
    job = chain(only(SVD(rank=2), "hidden"), KMeans(clusters=4)).apply(replace(job, model=smaller))
    write_file(tmp_path / "m.kogata", pack(job.model))
    into = load(tmp_path / "m.kogata", into=ConvNet())
    assert_equal(weights(into), weights(job.model))


def test_tensors_of_a_smaller_layer_must_agree(tmp_path: Path) -> None:
    """Shrunk halfway, along an axis that must stay, or away: refused, and the model is as it was."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.deep, self.linear = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 4)
            self.scale = nn.Parameter(torch.ones(8))

    for name, shape, reason in (
        ("conv.bias", (7,), r"conv\.weight has shape \(8, 3, 3, 3\), which does not fit out_channels = 7"),
        ("conv.weight", (8, 3, 3, 2), r"conv\.weight has shape"),
        ("conv.weight", (8, 0, 3, 3), r"conv\.weight has shape"),
        ("conv.weight", (8, 3, 9), r"conv\.weight has shape"),
        ("norm.running_mean", (7,), "num_features"),
        ("norm.num_batches_tracked", (1,), r"norm\.num_batches_tracked has shape"),
        ("deep.weight", (7, 1, 3, 3), "out_channels"),
        ("linear.weight", (5, 8), r"linear\.weight has shape"),
        ("scale", (7,), r"scale has shape \(7,\), but the model has \(8,\)"),
    ):
        model, into = Normed(), Normed()
        owner, _, key = name.rpartition(".")
        old = getattr(model.get_submodule(owner), key)
        new = torch.ones(shape, dtype=old.dtype)
        setattr(model.get_submodule(owner), key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        write_file(tmp_path / "m.kogata", pack(model))
        before, said = snapshot(into), repr(into)
        with pytest.raises(FileFormatError, match=rf"is of another model: .*{reason}"):
            load(tmp_path / "m.kogata", into=into)
        assert_untouched(into, before)
        assert repr(into) == said


def test_activation_quantizers_come_back(tmp_path: Path) -> None:
    model = ConvNet().eval()
    attach_quantizer(model.hidden, Static(torch.tensor(0.1), bits=4, zero=3))
    write_file(tmp_path / "m.kogata", pack(model))
    inputs = torch.randn(4, 3, 8, 8)
    into = load(tmp_path / "m.kogata", into=ConvNet().eval())
    assert torch.equal(into(inputs), model(inputs))
    other = nn.Linear(2, 2)
    with pytest.raises(FileFormatError, match="another model"):
        load(tmp_path / "m.kogata", into=other)


def test_dense_bytes_count_tied_weights_once() -> None:
    model = job_of("tied").model
    values = sum(parameter.nbytes for parameter in model.parameters())
    assert values < dense_bytes(model) < values + model.get_parameter("out.weight").nbytes

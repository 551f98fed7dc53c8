"""IDX files: what is written is read, and every kind of damage is named and bounded."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kogata.errors import DataError
from kogata.tasks.idx import MAX_BYTES, read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


small_arrays = arrays(np.uint8, array_shapes(max_dims=4, max_side=5))


@given(array=small_arrays, packed=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_reads_what_was_written(tmp_path: Path, array: np.ndarray, packed: bool):
    path = tmp_path / ("data.gz" if packed else "data")
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_idx(path, hashlib.sha256(content).hexdigest()), array, strict=True)


@given(array=small_arrays, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_every_truncation_is_refused(tmp_path: Path, array: np.ndarray, data: st.DataObject):
    content = idx_bytes(array)
    path = tmp_path / "cut"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match="cut"):
        read_idx(path)


@given(junk=st.binary(max_size=64).filter(lambda junk: junk[:3] != b"\0\0\x08"), packed=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_junk_is_refused(tmp_path: Path, junk: bytes, packed: bool):
    path = tmp_path / ("junk.gz" if packed else "junk")
    path.write_bytes(junk)
    with pytest.raises(DataError, match="junk"):  # four fixed bytes first: no junk is a file by chance
        read_idx(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b"", "starts with nothing"),
        ("png", b"\x89PNG\r\n\x1a\n", "starts with 89504e47"),
        ("floats", b"\0\0\x0d\x01" + struct.pack(">If", 1, 1.0), "expected 000008"),
        ("short-header", b"\0\0\x08\x03\0\0\0\x01", "announces 3 dimensions"),
        ("short", b"\0\0\x08\x01\0\0\0\x05abc", "announces 5 values, it holds only 3"),
        ("long", b"\0\0\x08\x01\0\0\0\x02abc", "announces 2 values, it holds more"),
        ("huge", b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", f"over the limit of {MAX_BYTES}"),
        ("not-gzip.gz", b"\0\0\x08\x01\0\0\0\x01a", "BadGzipFile"),
        ("cut.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-9], "EOFError"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "Replace it" in str(caught.value)


def test_a_gzip_bomb_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + bytes(1 << 24)))
    expanded = []
    read = gzip.GzipFile.read

    def counting(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        content = read(self, size)
        expanded.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    with pytest.raises(DataError, match="it holds more"):
        read_idx(path)
    assert sum(expanded) == 4 + 4 + 5 + 1


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path):
    content = bytearray(idx_bytes(np.arange(10, dtype=np.uint8)))
    digest = hashlib.sha256(content).hexdigest()
    content[-3] ^= 4
    path = tmp_path / "flipped"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"expected {digest}"):
        read_idx(path, digest)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="absent"):
        read_idx(tmp_path / "absent")

"""Bytes that no coder wrote: an error of ours or an array of the right shape and range, never anything else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kogata.coding import CODERS, Budget, Coder, Plane, PlaneKind, PlaneSpec, decode, encode
from kogata.coding.huffman import Huffman
from kogata.coding.packed import Packed
from kogata.coding.rans import StaticRans
from kogata.coding.relative import Relative
from kogata.coding.zstd import Zstd
from kogata.errors import FileFormatError

_rng = np.random.default_rng(0)
PLANES = [
    Plane.symbols((_rng.random(500) ** 3 * 13).astype(np.uint8), 13),
    Plane.symbols((_rng.random((20, 30)) ** 3 * 300).astype(np.uint16), 300),
    Plane.symbols(np.full(100, 3), 5),
    Plane.mask(_rng.random((30, 40)) < 0.08),
    Plane.mask(np.zeros((3, 3), np.bool_)),
    Plane.floats(_rng.normal(size=(10, 10)).astype(np.float32)),
    Plane.integers(_rng.integers(-9, 9, 200, dtype=np.int8)),
    Plane.integers(_rng.random(50) < 0.5),
]


def check(coder: Coder, data: bytes, spec: PlaneSpec) -> None:
    try:
        array = coder.decode(data, spec, Budget())
    except FileFormatError:
        return
    assert array.shape == spec.shape
    assert array.dtype == spec.array_dtype
    if spec.kind is PlaneKind.SYMBOLS and array.size:
        assert int(array.min()) >= 0
        assert int(array.max()) < spec.alphabet
    if spec.dtype == "bool":
        assert set(np.unique(array.view(np.uint8)).tolist()) <= {0, 1}


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: f"{plane.spec.kind}-{plane.spec.shape}")
@pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)
@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_damaged_bytes_never_do_anything_but_fail_cleanly(coder: Coder, plane: Plane, draw: st.DataObject) -> None:
    data = coder.encode(plane) if coder.accepts(plane.spec) else None
    if data is None:
        return
    cut = draw.draw(st.integers(0, len(data)))
    check(coder, data[:cut], plane.spec)
    flipped = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        if flipped:
            flipped[draw.draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    check(coder, bytes(flipped), plane.spec)
    check(coder, data + draw.draw(st.binary(min_size=1, max_size=20)), plane.spec)
    check(coder, draw.draw(st.binary(max_size=60)), plane.spec)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80), which=st.integers(0, len(PLANES) - 1))
def test_any_bytes_behind_any_tag_fail_cleanly(data: bytes, which: int) -> None:
    spec = PLANES[which].spec
    for coder in CODERS:
        try:
            assert decode(bytes([coder.tag]) + data, spec).shape == spec.shape
        except FileFormatError:
            continue


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x01"])
def test_an_unknown_coder_is_named(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="cannot decode"):
        decode(data, PLANES[0].spec)


@pytest.mark.parametrize("coder", [Packed(), Huffman(), StaticRans(), Zstd()], ids=lambda coder: coder.name)
def test_a_truncated_static_stream_is_noticed(coder: Coder) -> None:
    plane = PLANES[0]
    data = coder.encode(plane)
    assert data is not None
    for cut in range(len(data)):
        with pytest.raises(FileFormatError):
            coder.decode(data[:cut], plane.spec, Budget())


def test_a_stream_for_another_shape_is_noticed() -> None:
    plane = PLANES[0]
    data = encode(plane, (StaticRans(),)).data
    for size in (400, 600, 10**6):
        with pytest.raises(FileFormatError):
            decode(data, PlaneSpec(PlaneKind.SYMBOLS, (size,), "uint8", 13))


def test_a_zstd_frame_that_claims_or_holds_too_much_is_refused() -> None:
    import zstandard

    spec = Plane.floats(np.zeros(4, np.float32)).spec
    for states_size in (True, False):
        parameters = zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=states_size
        )
        bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(1 << 24))
        with pytest.raises(FileFormatError):
            Zstd().decode(bomb, spec, Budget())


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused() -> None:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, window_log=27
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(bytes(16)) + stream.flush()
    assert zstandard.get_frame_parameters(data, format=zstandard.FORMAT_ZSTD1_MAGICLESS).window_size == 1 << 27
    with pytest.raises(FileFormatError):
        Zstd().decode(data, Plane.floats(np.zeros(4, np.float32)).spec, Budget())


def test_a_gap_past_the_end_of_a_mask_is_refused() -> None:
    mask = np.zeros(1000, np.bool_)
    mask[[3, 900]] = True
    data = Relative().encode(Plane.mask(mask))
    assert data is not None
    with pytest.raises(FileFormatError, match="900"):
        Relative().decode(data, PlaneSpec(PlaneKind.MASK, (900,), "bool"), Budget())

"""Whatever a coder writes, it reads back exactly: every coder, every kind of plane, every awkward size."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kogata.coding import CODERS, Budget, Coder, Plane, decode, encode
from kogata.errors import DataError

SHAPES = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    st.sampled_from([(0,), (1,), (1, 1), (1, 300), (300, 1), (50_000,), (40, 3, 3, 3), (7, 1000), ()]),
)
DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]


@st.composite
def symbol_planes(draw: st.DrawFn) -> Plane:
    """Constant, skewed or flat symbols of an alphabet that may be far larger than what occurs."""
    alphabet = draw(st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 3, 255, 256, 257, 4096, 65535, 65536])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(SHAPES)
    power = draw(st.sampled_from([1, 4, 40]))
    symbols = (rng.random(shape) ** power * alphabet).astype(draw(st.sampled_from(["uint16", "int32", "int64"])))
    if draw(st.booleans()):
        symbols = np.full_like(symbols, alphabet - 1)
    return Plane.symbols(symbols, alphabet)


@st.composite
def mask_planes(draw: st.DrawFn) -> Plane:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.001, 0.05, 0.5, 0.99, 1.0]))
    return Plane.mask(np.asarray(rng.random(draw(SHAPES)) < density))


@st.composite
def float_planes(draw: st.DrawFn) -> Plane:
    """Any bit pattern, NaNs and infinities included."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(["float16", "float32", "float64", "bfloat16"]))
    shape = draw(SHAPES)
    bits = rng.integers(0, 2 ** draw(st.sampled_from([1, 16])), (*shape, 4), dtype=np.uint16)
    if dtype == "bfloat16":
        return Plane.floats(np.asarray(bits[..., 0]), "bfloat16")
    return Plane.floats(np.ascontiguousarray(bits).view(dtype)[..., 0])


@st.composite
def integer_planes(draw: st.DrawFn) -> Plane:
    dtype = draw(st.sampled_from(DTYPES))
    lowest, highest = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low = draw(st.integers(lowest, highest))
    high = draw(st.one_of(st.just(low), st.integers(low, min(highest, low + 70_000)), st.just(highest)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(SHAPES)
    if dtype == "bool":
        return Plane.integers(rng.integers(low, high, shape, endpoint=True, dtype=np.uint8).astype(np.bool_))
    return Plane.integers(np.asarray(rng.integers(low, high, shape, endpoint=True, dtype=dtype)))


PLANES = st.one_of(symbol_planes(), mask_planes(), float_planes(), integer_planes())


def assert_same(decoded: NDArray[np.generic], plane: Plane) -> None:
    assert decoded.dtype == plane.array.dtype
    assert decoded.shape == plane.array.shape
    assert decoded.tobytes() == plane.array.tobytes()


@pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)
@settings(max_examples=60, deadline=None)
@given(plane=PLANES)
def test_a_coder_reads_back_what_it_wrote(coder: Coder, plane: Plane) -> None:
    if not coder.accepts(plane.spec):
        return
    data = coder.encode(plane)
    if data is not None:
        assert_same(coder.decode(data, plane.spec, Budget()), plane)
        assert coder.encode(plane) == data


@settings(max_examples=100, deadline=None)
@given(plane=PLANES)
def test_the_smallest_is_chosen_and_read_back(plane: Plane) -> None:
    coded = encode(plane)
    assert_same(decode(coded.data, plane.spec), plane)
    assert encode(plane) == coded
    bodies = [coder.encode(plane) for coder in CODERS if coder.accepts(plane.spec) and not coder.required_gain]
    assert len(coded.data) <= 1 + min(len(body) for body in bodies if body is not None)


def _with_leading_zeros(zeros: int, shape: tuple[int, int], density: float, seed: int) -> Plane:
    """The given number of zeros, or all cells but one, then random cells, in row-major order."""
    rows, columns = shape
    cells = np.random.default_rng(seed).random(rows * columns) < density
    cells[: min(zeros, rows * columns - 1)] = False
    return Plane.mask(cells.reshape(rows, columns))


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        _with_leading_zeros,
        zeros=st.integers(60_000, 200_000),
        shape=st.sampled_from([(1, 70_000), (70_000, 1), (3, 70_000), (300, 784), (100_000, 2), (90, 784)]),
        density=st.sampled_from([0.0, 0.0005, 0.3, 1.0]),
        seed=st.integers(0, 2**32 - 1),
    )
)
def test_masks_that_begin_with_many_zeros_are_read_back(plane: Plane) -> None:
    for coder in CODERS:
        data = coder.encode(plane) if coder.accepts(plane.spec) else None
        if data is not None:
            assert_same(coder.decode(data, plane.spec, Budget()), plane)


@pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)
def test_a_strided_or_foreign_endian_array_is_coded_by_its_values(coder: Coder) -> None:
    values = np.arange(60).reshape(6, 10) % 7
    for plane, same in [
        (Plane.symbols(values.T[::2].astype(">i4"), 7), Plane.symbols(values.T[::2].astype("int32"), 7)),
        (Plane.mask((values > 5).T), Plane.mask(np.ascontiguousarray((values > 5).T))),
        (Plane.floats(values.T.astype(">f4")), Plane.floats(np.ascontiguousarray(values.T.astype("float32")))),
        (Plane.integers(values.T.astype(">i2")), Plane.integers(np.ascontiguousarray(values.T.astype("int16")))),
    ]:
        if coder.accepts(plane.spec):
            assert coder.encode(plane) == coder.encode(same)


def test_a_read_only_array_can_be_coded() -> None:
    values = (np.arange(600).reshape(20, 30) % 7).astype(np.uint8)
    values.setflags(write=False)
    mask = values > 5
    mask.setflags(write=False)
    halves = values / np.float32(2)
    halves.setflags(write=False)
    for plane in (Plane.symbols(values, 7), Plane.mask(mask), Plane.integers(values), Plane.floats(halves)):
        assert_same(decode(encode(plane).data, plane.spec), plane)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Plane.symbols(np.array([0, 3]), 3), r"\[0, 3\)"),
        (lambda: Plane.symbols(np.array([-1]), 3), r"\[0, 3\)"),
        (lambda: Plane.symbols(np.array([0.5]), 3), "integers"),
        (lambda: Plane.symbols(np.array([0]), 0), "alphabet"),
        (lambda: Plane.symbols(np.array([0]), 65537), "alphabet"),
        (lambda: Plane.mask(np.array([0, 1])), "boolean"),
        (lambda: Plane.floats(np.array([0, 1])), "float16"),
        (lambda: Plane.floats(np.array([0.5]), "bfloat16"), "uint16"),
        (lambda: Plane.integers(np.array([0.5])), "integer"),
    ],
)
def test_a_plane_refuses_an_array_of_another_kind(build: Callable[[], Plane], says: str) -> None:
    with pytest.raises(DataError, match=says):
        build()

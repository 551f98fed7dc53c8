"""Round to nearest against plain NumPy arithmetic, loop by loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Affine, Role
from kogata.job import Kind, Site
from kogata.methods import RoundToNearest

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def encode(weight: Tensor, bits: int, group: int | None = None, *, symmetric: bool = False) -> Affine:
    form = RoundToNearest(bits=bits, group=group, symmetric=symmetric).encode(weight, SITE, Stats())
    assert isinstance(form, Affine)
    return form


def by_numpy(weight: np.ndarray, bits: int, group: int | None, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """The dequantized weight and the scale of every entry, in float64 save for scales, which are half precision."""
    rows = weight.reshape(1, -1) if weight.ndim < 2 else weight.reshape(weight.shape[0], -1)
    rows = rows.astype(np.float64)
    result, scales = np.zeros_like(rows), np.zeros_like(rows)
    width, top = group or rows.shape[1], 2**bits - 1
    for r in range(rows.shape[0]):
        for start in range(0, rows.shape[1], width):
            part = rows[r, start : start + width]
            if symmetric and bits > 1:
                scale = float(np.float16(np.abs(part).max() / (2 ** (bits - 1) - 1)))
                zero = 2 ** (bits - 1)
            else:
                low, high = min(part.min(), 0.0), max(part.max(), 0.0)
                scale = float(np.float16((high - low) / top))
                zero = round(-low / scale)
            code = np.clip(np.rint(part / scale) + zero, 0, top)
            result[r, start : start + width] = scale * (code - zero)
            scales[r, start : start + width] = scale
    return result.reshape(weight.shape), scales.reshape(weight.shape)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("shape", "group"), [((6, 32), None), ((6, 32), 8), ((5, 13), 4), ((4, 3, 3, 3), 5), ((17,), None)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_numpy(bits: int, shape: tuple[int, ...], group: int | None, symmetric: bool) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    form = encode(weight, bits, group, symmetric=symmetric)
    wanted, scales = by_numpy(weight.numpy(), bits, group, symmetric=symmetric)
    found = form.dense().detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert int(form.code.max()) < 2**bits
    assert int(form.zero.max()) < 2**bits
    # Half precision scales and rounded zero points may leave the ends of the range half a step outside.
    ends = 1.0 if not symmetric or bits == 1 else 0.51 + 2.0 ** (bits - 12)
    assert np.all(np.abs(found - weight.numpy()) <= scales * ends + 1e-7)
    inside = (form.code.numpy() > 0) & (form.code.numpy() < 2**bits - 1)
    assert np.all(np.abs(found - weight.numpy())[inside] <= scales[inside] / 2 + 1e-6)


def test_signs_and_zero_are_kept_exactly() -> None:
    weight = torch.tensor([[0.0, 1.0, -1.0, 0.0], [0.0, 5.0, 2.0, 1.0]])
    for symmetric in (False, True):
        dense = encode(weight, 4, symmetric=symmetric).dense().detach()
        assert float(dense[weight == 0].abs().max()) == 0
        assert torch.equal(dense.sign(), weight.sign())


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_zeros_stays_zero(symmetric: bool) -> None:
    weight = torch.cat([torch.zeros(3, 8), torch.randn(3, 8)], dim=1)
    dense = encode(weight, 3, 8, symmetric=symmetric).dense().detach()
    assert float(dense[:, :8].abs().max()) == 0
    assert bool(torch.isfinite(dense).all())


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(1, 8),
    st.integers(1, 24),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_error_is_bounded_by_the_step(weight: np.ndarray, bits: int, group: int, symmetric: bool) -> None:
    form = encode(torch.from_numpy(weight), bits, group, symmetric=symmetric)
    scale = form.scale.dense().detach().repeat_interleave(form.group, 1)[:, : weight.shape[1]].numpy().astype(np.float64)
    error = np.abs(form.dense().detach().numpy().astype(np.float64) - weight)
    rest = np.abs(weight) * 2.0**-10  # scales are rounded to half precision
    assert np.all(error <= scale * 0.5001 + rest) or not (symmetric and bits > 1)
    assert np.all(error <= scale * 1.0001 + rest)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**-10, 2.0**12, 2.0**20, 2.0**30])
def test_a_layer_of_any_scale_keeps_its_precision(bits: int, symmetric: bool, factor: float) -> None:
    weight = torch.randn(8, 64)
    first, second = (encode(w, bits, 16, symmetric=symmetric).dense().detach() for w in (weight, weight * factor))
    error = float((first - weight).norm() / weight.norm())
    assert float((second / factor - weight).norm() / weight.norm()) <= 1.1 * error


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_bits_and_smaller_groups_are_closer(bits: int) -> None:
    weight = torch.randn(16, 64)
    error = lambda b, g: float((encode(weight, b, g).dense().detach() - weight).norm())  # noqa: E731
    assert error(bits, None) > error(bits, 8)
    assert error(bits - 1, 16) > 1.5 * error(bits, 16)


def test_a_group_longer_than_the_row_is_the_row() -> None:
    weight = torch.randn(4, 10)
    assert torch.equal(encode(weight, 4, 1000).dense(), encode(weight, 4).dense())


@pytest.mark.parametrize(("bits", "group"), [(0, None), (9, None), (4, 0), (4, -3)])
def test_settings_are_checked(bits: int, group: int | None) -> None:
    with pytest.raises(UsageError, match="round-to-nearest"):
        RoundToNearest(bits=bits, group=group)

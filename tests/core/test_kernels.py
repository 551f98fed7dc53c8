"""The compiled circular product against its definition, index by index."""

from __future__ import annotations

import numpy as np
import pytest

from kogata.engines.lowering.circular import CircularProduct


def defined(base_PQB: np.ndarray, sign_I: np.ndarray, x_NI: np.ndarray) -> np.ndarray:
    """``y_{p, j} = Σ_{q, i} base[p, q, (j − i) mod b] sign_{q, i} x_{q, i}`` in float64."""
    down, across, b = base_PQB.shape
    place_BB = (np.arange(b)[:, None] - np.arange(b)) % b
    weight_PBQB = base_PQB.astype(np.float64)[:, :, place_BB].transpose(0, 2, 1, 3)
    return (x_NI.astype(np.float64) * sign_I) @ weight_PBQB.reshape(down * b, across * b)[:, : x_NI.shape[1]].T


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize(
    "shape",
    [*((1, 1, b) for b in (1, 2, 4, 8, 16, 32, 64, 256, 1024)), *((3, 2, b) for b in (1, 2, 4, 8, 16, 64)), (1, 5, 8)],
)
def test_circular_products(shape: tuple[int, int, int], dtype: type, bound: float) -> None:
    _, across, b = shape
    generator = np.random.default_rng(b)
    for inputs in {across * b, (across - 1) * b + 1 + 2 * (b - 1) // 3}:
        base_PQB, x_NI = generator.standard_normal(shape).astype(dtype), generator.standard_normal((3, inputs)).astype(dtype)
        sign_I = generator.choice([-1, 1], inputs).astype(dtype)
        found, expected = CircularProduct(base_PQB, sign_I)(x_NI), defined(base_PQB, sign_I, x_NI)
        assert found.dtype == dtype
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize("blocks", [1, 2])
def test_nothing_that_was_given_is_changed(blocks: int) -> None:
    base_PQB, sign_I, x_NI = np.ones((blocks, blocks, 8)), np.ones(8 * blocks), np.arange(8.0 * blocks)[None]
    product = CircularProduct(base_PQB, sign_I)
    product(x_NI)
    assert (base_PQB == 1).all()
    assert (sign_I == 1).all()
    assert (x_NI == np.arange(8 * blocks)).all()


def test_what_is_not_finite_stays_so() -> None:
    """A NaN has to be seen downstream."""
    product = CircularProduct(np.ones((1, 1, 8)), np.ones(8))
    assert not np.isfinite(product(np.array([[1.0, np.nan, *range(6)]]))).any()
    assert not np.isfinite(product(np.array([[1.0, np.inf, *range(6)]]))).any()

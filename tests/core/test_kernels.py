"""The compiled circular product against its definition, index by index."""

from __future__ import annotations

import numpy as np
import pytest

from kogata.kernels.circular import CircularProduct


def defined(base_N: np.ndarray, sign_I: np.ndarray, x_NI: np.ndarray) -> np.ndarray:
    """``y_j = Σ_i base[(j − i) mod n] sign_i x_i`` in float64."""
    n = len(base_N)
    place = np.arange(n)[:, None] - np.arange(x_NI.shape[1])
    return (x_NI.astype(np.float64) * sign_I) @ base_N.astype(np.float64)[place % n].T


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 64, 256, 1024])
def test_circular_products(n: int, dtype: type, bound: float) -> None:
    generator = np.random.default_rng(n)
    for inputs in {n, 1 + 2 * n // 3}:
        base_N, x_NI = generator.standard_normal(n).astype(dtype), generator.standard_normal((3, inputs)).astype(dtype)
        sign_I = generator.choice([-1, 1], inputs).astype(dtype)
        found, expected = CircularProduct(base_N, sign_I)(x_NI), defined(base_N, sign_I, x_NI)
        assert found.dtype == dtype
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


def test_nothing_that_was_given_is_changed() -> None:
    base_N, sign_I, x_NI = np.ones(8), np.ones(8), np.arange(8.0)[None]
    product = CircularProduct(base_N, sign_I)
    product(x_NI)
    assert (base_N == 1).all()
    assert (sign_I == 1).all()
    assert (x_NI == np.arange(8)).all()


def test_what_is_not_finite_stays_so() -> None:
    """A NaN has to be seen downstream."""
    product = CircularProduct(np.ones(8), np.ones(8))
    assert not np.isfinite(product(np.array([[1.0, np.nan, *range(6)]]))).any()
    assert not np.isfinite(product(np.array([[1.0, np.inf, *range(6)]]))).any()

"""Masks and symbol planes that look like those of pruned, shared weights, without training a net for them."""

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def pruned_mask() -> NDArray[np.bool_]:
    """A [120, 144] mask, some 6 % ones: columns on a 12 x 12 grid, dense in its middle and empty at its border."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:12j, -1:1:12j]
    columns = 0.22 * np.exp(-3 * (x**2 + y**2)).ravel() * ((abs(x) < 0.8) & (abs(y) < 0.8)).ravel()
    rows = rng.uniform(0.2, 1.8, (120, 1))
    return rng.random((120, 144)) < columns * rows


@pytest.fixture(scope="session")
def shared_indices() -> NDArray[np.uint8]:
    """60,000 centroid indices in [0, 16): two humps around the pruned zero, as k-means leaves them."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 1], 60_000) * (1 + rng.gamma(2.0, 0.5, 60_000))
    return np.clip(np.round(values * 2 + 7.5), 0, 15).astype(np.uint8)

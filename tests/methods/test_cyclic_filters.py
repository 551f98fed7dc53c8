"""Cyclic filters: four turns of one filter, against least squares by loops over places."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogata.errors import UsageError
from kogata.methods.filters.cyclic_filters import CyclicFilters
from tests.methods import transferred


def turned(base: Tensor, turns: int) -> Tensor:
    """Quarter turns to the left, place by place."""
    out, size = base.clone(), base.shape[-1]
    for _ in range(turns):
        last = out.clone()
        for y in range(size):
            for x in range(size):
                out[:, y, x] = last[:, x, size - 1 - y]
    return out


TRANSFORMS = [partial(turned, turns=t) for t in range(4)]


def test_filters_that_are_such_transforms_are_left_as_they_are() -> None:
    transferred.check_symmetric(CyclicFilters(), torch.randn(4, 3, 3, 3), TRANSFORMS)


def test_no_base_is_nearer() -> None:
    transferred.check_projection(CyclicFilters(), torch.randn(8, 3, 3, 3), TRANSFORMS, (3, 3, 3))


def test_tolerance_is_of_the_layer_s_outputs() -> None:
    transferred.check_tolerance(lambda tolerance: CyclicFilters(tolerance=tolerance), 16)


def test_residual_is_the_best_of_its_rank() -> None:
    transferred.check_residual(CyclicFilters(), CyclicFilters(residual=2))


def test_file(tmp_path: Path) -> None:
    transferred.check_round_trip(CyclicFilters(), tmp_path, 16)


def test_layers_without_such_filters_are_refused() -> None:
    transferred.check_refused(CyclicFilters(), 16, square=True)


def test_no_cheaper_layer() -> None:
    transferred.check_no_cheaper_layer(CyclicFilters())


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        CyclicFilters(tolerance=tolerance)
    with pytest.raises(UsageError, match="residual"):
        CyclicFilters(residual=1.5)

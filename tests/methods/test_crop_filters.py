"""Crop filters: all crops of larger ones, against least squares over the places where they overlap."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kogata.errors import NotApplicable, UsageError
from kogata.methods.filters.crop_filters import CropFilters
from tests.methods import transferred


def crop(base: Tensor, y: int, x: int) -> Tensor:
    return base[:, y : y + 3, x : x + 3]


TRANSFORMS = [partial(crop, y=y, x=x) for y in range(2) for x in range(2)]


def test_filters_that_are_such_transforms_are_left_as_they_are() -> None:
    transferred.check_symmetric(CropFilters(), torch.randn(4, 3, 4, 4), TRANSFORMS)


def test_no_base_is_nearer() -> None:
    transferred.check_projection(CropFilters(), torch.randn(8, 3, 3, 3), TRANSFORMS, (3, 4, 4))


def test_tolerance_is_of_the_layer_s_outputs() -> None:
    transferred.check_tolerance(lambda tolerance: CropFilters(tolerance=tolerance), 16)


def test_residual_is_the_best_of_its_rank() -> None:
    transferred.check_residual(CropFilters(), CropFilters(residual=2))


def test_file(tmp_path: Path) -> None:
    transferred.check_round_trip(CropFilters(), tmp_path, 16)


def test_layers_without_such_filters_are_refused() -> None:
    transferred.check_refused(CropFilters(), 16, square=True)


def test_no_cheaper_layer() -> None:
    transferred.check_no_cheaper_layer(CropFilters())


def test_margin_is_checked() -> None:
    with pytest.raises(UsageError, match="margin is 0"):
        CropFilters(margin=0)
    with pytest.raises(NotApplicable, match="do not overlap"):
        transferred.encoded(CropFilters(margin=3), torch.randn(16, 2, 3, 3))


def test_a_larger_margin_holds_more_filters() -> None:
    nine = [partial(crop, y=y, x=x) for y in range(3) for x in range(3)]
    transferred.check_symmetric(CropFilters(margin=2), torch.randn(2, 3, 5, 5), nine)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        CropFilters(tolerance=tolerance)
    with pytest.raises(UsageError, match="residual"):
        CropFilters(residual=1.5)

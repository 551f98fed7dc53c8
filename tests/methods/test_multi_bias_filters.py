"""Multi-bias filters: groups that are one filter, against least squares, all pairings, and the engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kogata.errors import UsageError
from kogata.methods.filters.multi_bias_filters import MultiBiasFilters
from tests.methods import transferred

TRANSFORMS = [lambda b: b] * 3


def test_filters_that_are_such_transforms_are_left_as_they_are() -> None:
    transferred.check_symmetric(MultiBiasFilters(biases=3), torch.randn(4, 3, 3, 3), TRANSFORMS)


def test_no_base_is_nearer() -> None:
    transferred.check_projection(MultiBiasFilters(biases=3), torch.randn(9, 3, 3, 3), TRANSFORMS, (3, 3, 3))


def test_tolerance_is_of_the_layer_s_outputs() -> None:
    transferred.check_tolerance(lambda tolerance: MultiBiasFilters(biases=3, tolerance=tolerance), 12)


def test_residual_is_the_best_of_its_rank() -> None:
    transferred.check_residual(MultiBiasFilters(biases=2), MultiBiasFilters(biases=2, residual=2))


def test_file(tmp_path: Path) -> None:
    transferred.check_round_trip(MultiBiasFilters(biases=3), tmp_path, 12)


def test_layers_without_such_filters_are_refused() -> None:
    transferred.check_refused(MultiBiasFilters(biases=3), 12, square=False)


def test_fewer_filters_in_every_engine() -> None:
    transferred.check_lowered(MultiBiasFilters(biases=3), 4)


def test_pairs_are_the_best_of_all_pairings() -> None:
    """Where partners are nearer to each other than to others; for filters without partners the greedy choice may lose more."""
    weight = transferred.bank(torch.randn(3, 2, 3, 3), TRANSFORMS[:2], noise=0.3)
    error = float((transferred.encoded(MultiBiasFilters(), weight).dense() - weight).detach().square().sum())

    def losses(left: list[int]) -> list[float]:
        if not left:
            return [0.0]
        first, rest = left[0], left[1:]
        return [
            float((weight[first] - weight[other]).square().sum()) / 2 + loss
            for other in rest
            for loss in losses([each for each in rest if each != other])
        ]

    every = losses(list(range(6)))
    assert len(every) == 15
    assert error == pytest.approx(min(every), rel=1e-5)


def test_biases_are_checked() -> None:
    with pytest.raises(UsageError, match="biases is 1"):
        MultiBiasFilters(biases=1)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_are_checked(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        MultiBiasFilters(tolerance=tolerance)
    with pytest.raises(UsageError, match="residual"):
        MultiBiasFilters(residual=1.5)

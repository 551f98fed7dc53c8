"""Group filters: turns and mirror images of one filter, planes permuted along, against least squares by loops over places."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.forms.filter_maps import Orbit
from kogata.forms.permuted import Permuted
from kogata.forms.tied import Tied
from kogata.methods.filters.group_filters import GroupFilters
from kogata.nn.filters import equivariance, group_convolution
from kogata.testing.comparisons import assert_near
from tests.methods import transferred

Element = tuple[tuple[int, int], tuple[int, int]]  # a matrix that moves places about the centre


def elements(mirrored: bool) -> list[Element]:
    """Mirrored left to right or not, then turned to the left: places are (right, up)."""
    found: list[Element] = []
    for flip in (False, True) if mirrored else (False,):
        matrix: Element = ((-1 if flip else 1, 0), (0, 1))
        for _ in range(4):
            found.append(matrix)
            matrix = product(((0, -1), (1, 0)), matrix)
    return found


def product(one: Element, other: Element) -> Element:
    rows = [tuple(sum(one[i][k] * other[k][j] for k in range(2)) for j in range(2)) for i in range(2)]
    return ((rows[0][0], rows[0][1]), (rows[1][0], rows[1][1]))


def moved(base: Tensor, element: Element, among: list[Element] | None) -> Tensor:
    """f(h, y) → f(g⁻¹ h, g⁻¹ y), place by place; planes stay what they are unless they are ``among`` the elements."""
    out, size = torch.empty_like(base), base.shape[-1]
    centre = (size - 1) / 2
    for i in range(len(base)):
        goes = i
        if among is not None:
            group, h = divmod(i, len(among))
            goes = group * len(among) + among.index(product(element, among[h]))
        for row in range(size):
            for column in range(size):
                right, up = column - centre, centre - row
                x = element[0][0] * right + element[0][1] * up
                y = element[1][0] * right + element[1][1] * up
                out[goes, round(centre - y), round(centre + x)] = base[i, row, column]
    return out


def transforms(*, mirrored: bool, stacked: bool) -> list[transferred.Transform]:
    every = elements(mirrored)
    return [partial(moved, element=element, among=every if stacked else None) for element in every]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_symmetric_filters_are_left_as_they_are(mirrored: bool, stacked: bool) -> None:
    base = torch.randn(3, 8, 3, 3)
    transferred.check_symmetric(GroupFilters(mirrored=mirrored), base, transforms(mirrored=mirrored, stacked=stacked))


@pytest.mark.parametrize("mirrored", [False, True])
def test_no_base_is_nearer(mirrored: bool) -> None:
    moves = transforms(mirrored=mirrored, stacked=False)
    transferred.check_projection(GroupFilters(mirrored=mirrored), torch.randn(16, 3, 3, 3), moves, (3, 3, 3))
    stacks = transforms(mirrored=mirrored, stacked=True)
    noisy = transferred.bank(torch.randn(2, 8, 3, 3), stacks, noise=0.2)
    transferred.check_projection(GroupFilters(mirrored=mirrored), noisy, stacks, (8, 3, 3))


def test_images_or_maps_is_decided_by_what_loses_less() -> None:
    for stacked in (False, True):
        form = transferred.encoded(
            GroupFilters(), transferred.bank(torch.randn(3, 8, 3, 3), transforms(mirrored=False, stacked=stacked), noise=0.1)
        )
        tied = form.part if isinstance(form, Permuted) else form
        assert isinstance(tied, Tied)
        assert tied.map == Orbit(mirrored=False, stacked=stacked)


def test_a_layer_trained_as_one_is_found_and_stays_equivariant() -> None:
    layer, images = group_convolution(2, 4, 3, stacked=False), torch.randn(4, 2, 8, 8)
    weight = layer.weight.detach()
    dense = nn.Conv2d(2, 16, 3, bias=False)
    dense.weight = nn.Parameter(weight + 0.02 * torch.randn_like(weight))
    before = equivariance(dense, images)[""]
    dense.weight = nn.Parameter(transferred.encoded(GroupFilters(), dense.weight.detach()).dense().detach())
    assert before > 1e-2
    assert equivariance(dense, images)[""] < 1e-5
    assert_near(dense.weight, weight, 0.2)


def test_tolerance_is_of_the_layer_s_outputs() -> None:
    transferred.check_tolerance(lambda tolerance: GroupFilters(tolerance=tolerance))


def test_residual_is_the_best_of_its_rank() -> None:
    transferred.check_residual(GroupFilters(), GroupFilters(residual=2))


@pytest.mark.parametrize("mirrored", [False, True])
def test_file(mirrored: bool, tmp_path: Path) -> None:
    transferred.check_round_trip(GroupFilters(mirrored=mirrored), tmp_path)


def test_layers_without_such_filters_are_refused() -> None:
    transferred.check_refused(GroupFilters(), 16, square=True)


def test_no_cheaper_layer() -> None:
    transferred.check_no_cheaper_layer(GroupFilters())


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="tolerance"):
        GroupFilters(tolerance=0.0)

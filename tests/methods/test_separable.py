"""Separable filters against Eckart and Young on the matrix [(inputs, height), (width, outputs)], and filters known to part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Role
from kogata.job import Kind, Site
from kogata.methods.lowrank.separable import Separable
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (16, 6, 3, 3), Kind.CONV, Role.MATRIX)


@pytest.mark.parametrize("shape", [(16, 6, 3, 3), (6, 16, 3, 5), (12, 1, 5, 5)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_error_is_the_tail_of_the_spectrum(shape: tuple[int, ...], rank: int) -> None:
    weight = torch.randn(shape)
    form = Separable(rank=rank).encode(weight, SITE, Stats())
    outputs, inputs, height, width = shape
    matrix = np.zeros((inputs * height, width * outputs))
    for n in range(outputs):
        for c in range(inputs):
            for y in range(height):
                for x in range(width):
                    matrix[c * height + y, x * outputs + n] = weight[n, c, y, x]
    tail = np.sort(np.linalg.eigvalsh(matrix.T @ matrix))[:-rank].sum()
    assert form.shape == weight.shape
    assert float((form.dense().detach().double() - weight.double()).square().sum()) == pytest.approx(tail, rel=1e-4)


def test_filters_that_part_are_recovered() -> None:
    down, across = torch.randn(2, 6, 3), torch.randn(16, 2, 3)
    terms = [[torch.einsum("iy,x->iyx", down[k], across[n, k]) for k in range(2)] for n in range(16)]
    weight = torch.stack([one + other for one, other in terms])
    assert_near(Separable(rank=2).encode(weight, SITE, Stats()).dense(), weight, 1e-5)


def test_rank_as_a_fraction() -> None:
    form = Separable(rank=0.25).encode(torch.randn(16, 8, 3, 3), SITE, Stats())
    assert [tuple(part.shape) for part in form.parts().values()] == [(16, 6, 3), (6, 8, 3)]


def test_half_precision_stays() -> None:
    layer = nn.Conv2d(8, 16, 3).half()
    job = Separable(rank=4).apply(prepare(nn.Sequential(layer), Task(calibration=[torch.randn(2, 8, 5, 5).half()])))
    assert job.model[0].weight.dtype == torch.float16  # type: ignore[index, union-attr]


@pytest.mark.parametrize("shape", [(16, 8, 1, 1), (16, 8, 1, 7), (16, 8, 5), (16, 8, 3, 3, 3)])
def test_kernels_without_two_extents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotApplicable, match="larger than 1 along both axes"):
        Separable(rank=1).encode(torch.randn(shape), SITE, Stats())


def test_no_gain_is_refused() -> None:
    with pytest.raises(NotApplicable, match="rank 24 of 18 holds no fewer"):
        Separable(rank=24).encode(torch.randn(16, 6, 3, 3), SITE, Stats())


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match=r"layer\.weight of shape .* NaN"):
        Separable(rank=1).encode(torch.full((16, 6, 3, 3), float("nan")), SITE, Stats())


@pytest.mark.parametrize("rank", [0, -1, 1.5, float("nan")])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="separable: rank"):
        Separable(rank=rank)

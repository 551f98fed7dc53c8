"""Residual quantization against its stages taken one by one, in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.forms.combined import Sum
from kogata.forms.vectors import Vectors
from kogata.job import Kind, Site
from kogata.methods.sharing.product_quantization import ProductQuantization
from kogata.methods.sharing.residual_quantization import ResidualQuantization

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def encode(weight: Tensor, stages: int, length: int | None) -> list[Vectors]:
    form = ResidualQuantization(clusters=6, stages=stages, length=length).encode(weight, SITE, Stats())
    assert isinstance(form, Sum)
    terms = [part for part in form.parts().values() if isinstance(part, Vectors)]
    assert len(terms) == len(form.parts()) == stages
    torch.testing.assert_close(form.dense(), torch.stack([term.dense() for term in terms]).sum(0))
    return terms


@pytest.mark.parametrize(("shape", "length"), [((40, 10), None), ((40, 10), 4), ((30, 4, 3, 3), 9)])
def test_each_stage_takes_the_nearest_row_for_what_is_left(shape: tuple[int, ...], length: int | None) -> None:
    weight = torch.randn(shape)
    rest = weight.flatten(1).double().numpy()
    width = length or rest.shape[1]
    errors = [float((rest**2).sum())]
    for term in encode(weight, 4, length):
        table, index = term.table.dense().detach().double().numpy(), term.index.numpy()
        for s in range(table.shape[0]):
            at = slice(s * width, min((s + 1) * width, rest.shape[1]))
            entries = table[s][:, : at.stop - at.start]
            for o in range(rest.shape[0]):
                distances = ((rest[o, at] - entries) ** 2).sum(1)
                assert distances[index[o, s]] <= distances.min() + 1e-5
        rest = rest - term.dense().detach().flatten(1).double().numpy()
        errors.append(float((rest**2).sum()))
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_first_stage_is_product_quantization() -> None:
    weight = torch.randn(40, 12)
    plain = ProductQuantization(clusters=6, length=4).encode(weight, SITE, Stats())
    assert torch.equal(encode(weight, 2, 4)[0].dense(), plain.dense())


def test_two_stages_find_sums_of_two() -> None:
    """Rows that are coarse + fine are found to the last bit: 3 + 4 vectors stand for 12."""
    coarse, fine = 10 * torch.randn(3, 6), 0.1 * torch.randn(4, 6)
    fine -= fine.mean(0)  # so that the mean of a coarse cluster is its centre
    weight = (coarse[:, None] + fine).reshape(12, 6).repeat(5, 1)
    form = ResidualQuantization(clusters=4, stages=3).encode(weight, SITE, Stats())
    coarser = ResidualQuantization(clusters=4, stages=2).encode(weight, SITE, Stats())
    errors = [float((f.dense().detach() - weight).norm() / weight.norm()) for f in (coarser, form)]
    assert errors[1] < errors[0] < 0.01


@pytest.mark.parametrize(("weight", "reason"), [(torch.randn(20), "no rows"), (torch.randn(6, 12), "6 rows")])
def test_refusals(weight: Tensor, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        ResidualQuantization(clusters=6).encode(weight, SITE, Stats())


def test_longer_than_a_row_is_refused() -> None:
    with pytest.raises(NotApplicable, match="5 entries"):
        ResidualQuantization(clusters=2, length=6).encode(torch.randn(20, 5), SITE, Stats())


@pytest.mark.parametrize(
    ("clusters", "stages", "length", "what"), [(0, 2, 4, "clusters"), (4, 1, 4, "stages"), (4, 2, 0, "length")]
)
def test_settings_are_checked(clusters: int, stages: int, length: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ResidualQuantization(clusters=clusters, stages=stages, length=length)


def test_three_stages_beat_one_of_the_same_bits() -> None:
    """Three codes of two bits each stand for 64 vectors, with 12 in the tables: better than one code of two bits, by far."""
    weight = torch.randn(200, 8)
    three = ResidualQuantization(clusters=4, stages=3, length=4).encode(weight, SITE, Stats())
    one = ProductQuantization(clusters=4, length=4).encode(weight, SITE, Stats())
    errors = [float((form.dense().detach() - weight).square().sum()) for form in (three, one)]
    assert errors[0] < 0.6 * errors[1]
    assert np.isfinite(errors[0])

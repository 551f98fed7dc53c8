"""SVD against Eckart and Young: the squared error is the sum of the discarded squared singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.engines import Costs
from kogata.engines.lowering.lower import lower
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Product, Role
from kogata.job import Kind, Site
from kogata.methods import SVD, KMeans, MagnitudePruning
from kogata.methods.base.compose import chain
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 4, 3, 3), (8, 6, 5)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_error_is_the_tail_of_the_spectrum(shape: tuple[int, ...], rank: int) -> None:
    weight = torch.randn(shape)
    form = SVD(rank=rank).encode(weight, SITE, Stats())
    matrix = weight.double().numpy().reshape(shape[0], -1)
    eigenvalues = np.linalg.eigvalsh(matrix @ matrix.T if shape[0] <= matrix.shape[1] else matrix.T @ matrix)
    tail = np.sort(eigenvalues)[:-rank].sum()
    found = float((form.dense().detach().double() - weight.double()).square().sum())
    assert form.shape == weight.shape
    assert found == pytest.approx(tail, rel=1e-4)
    assert np.linalg.matrix_rank(form.dense().detach().numpy().reshape(shape[0], -1), tol=1e-4) == rank


def test_factors_are_balanced() -> None:
    left, right = SVD(rank=4).encode(torch.randn(12, 20), SITE, Stats()).parts().values()
    columns, rows = left.dense().norm(dim=0), right.dense().norm(dim=1)
    np.testing.assert_allclose(columns.detach(), rows.detach(), rtol=1e-4)


def test_a_matrix_of_low_rank_is_recovered() -> None:
    weight = torch.randn(20, 2) @ torch.randn(2, 30)
    assert_near(SVD(rank=2).encode(weight, SITE, Stats()).dense(), weight, 1e-5)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(24, 18), torch.randn(3, 5, 24)),
        (nn.Linear(24, 18, bias=False), torch.randn(3, 24)),
        (nn.Conv2d(6, 16, 3, stride=2, padding=1), torch.randn(2, 6, 9, 8)),
        (nn.Conv2d(6, 16, (3, 5), padding="same", dilation=(2, 1), padding_mode="circular"), torch.randn(2, 6, 9, 8)),
        (nn.Conv2d(6, 16, 3, bias=False, padding_mode="reflect", padding=1), torch.randn(2, 6, 9, 8)),
        (nn.Conv1d(6, 12, 5, stride=2), torch.randn(2, 6, 20)),
        (nn.Conv3d(3, 8, 3), torch.randn(2, 3, 5, 6, 5)),
        (nn.Conv2d(8, 16, 3, groups=2), torch.randn(2, 8, 7, 7)),
        (nn.Embedding(30, 12, padding_idx=3), torch.randint(0, 30, (4, 5))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_lowered_layers_equal_the_dense_layer(by_products: Costs, layer: nn.Module, inputs: torch.Tensor) -> None:
    job = prepare(nn.Sequential(layer), Task(calibration=[inputs]))
    after = SVD(rank=3).apply(job)
    lowered = lower(after.model, by_products)
    with evaluating(after.model):
        assert_near(lowered(inputs), surgery.plain(after.model)(inputs), 1e-5)
    assert sum(p.numel() for p in lowered.parameters()) < sum(p.numel() for p in job.model.parameters())
    assert isinstance(lowered[0], nn.Sequential)  # type: ignore[index]
    assert not any(parameter.requires_grad for parameter in lowered.parameters())


@pytest.mark.parametrize("step", [MagnitudePruning(sparsity=0.5), KMeans(clusters=5)])
def test_lowering_reads_nested_factors(step: MagnitudePruning | KMeans) -> None:
    inputs = torch.randn(3, 24)
    job = chain(SVD(rank=4), step).apply(prepare(nn.Sequential(nn.Linear(24, 20)), Task(calibration=[inputs])))
    lowered = lower(job.model)
    assert isinstance(lowered[0], nn.Sequential)  # type: ignore[index]
    with evaluating(job.model):
        assert_near(lowered(inputs), job.model(inputs), 1e-5)


def test_layers_that_others_cannot_replace_stay_dense() -> None:
    inputs = torch.randn(2, 8, 7, 7)
    job = SVD(rank=2).apply(prepare(nn.Sequential(nn.ConvTranspose2d(8, 16, 3)), Task(calibration=[inputs])))
    lowered = lower(job.model)
    assert type(lowered[0]) is nn.ConvTranspose2d  # type: ignore[index]
    with evaluating(job.model):
        assert_near(lowered(inputs), job.model(inputs), 1e-6)


def test_rank_as_a_fraction() -> None:
    form = SVD(rank=0.25).encode(torch.randn(16, 40), SITE, Stats())
    assert isinstance(form, Product)
    assert [tuple(part.shape) for part in form.parts().values()] == [(16, 4), (4, 40)]


def test_no_gain_is_refused() -> None:
    with pytest.raises(NotApplicable, match="rank 8 of 16 holds no fewer"):
        SVD(rank=8).encode(torch.randn(16, 16), SITE, Stats())


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, -0.5, float("nan"), float("inf")])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="rank"):
        SVD(rank=rank)

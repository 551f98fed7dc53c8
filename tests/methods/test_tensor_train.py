"""Tensor trains against trains of known ranks, what each SVD discards, and the chain multiplied digit by digit."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.engines.lowering.lower import lower
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Kind, Site
from kogata.methods.kernels.svd import parted
from kogata.methods.lowrank.tensor_train import MOST, TensorTrain, equation
from kogata.network.batch import evaluating
from kogata.network.sites import model_bits
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (24, 36), Kind.LINEAR, Role.MATRIX)


def encoded(weight: Tensor, rank: float, cores: int) -> Form:
    return TensorTrain(rank=rank, cores=cores).encode(weight, SITE, Stats())


def digit_by_digit(cores: list[np.ndarray], rows: list[int], columns: list[int]) -> np.ndarray:
    """Each entry as the product of one matrix of each core."""
    matrix = np.zeros((math.prod(rows), math.prod(columns)))
    for i, a in enumerate(product(*map(range, rows))):
        for j, b in enumerate(product(*map(range, columns))):
            chain = np.ones((1, 1))
            for core, row, column in zip(cores, a, b, strict=True):
                chain = chain @ core[:, row, column, :]
            matrix[i, j] = chain.item()
    return matrix


def random_train(rows: list[int], columns: list[int], rank: int) -> np.ndarray:
    edges = [1, *[rank] * (len(rows) - 1), 1]
    generator = np.random.default_rng(0)
    cores = [generator.standard_normal((edges[k], rows[k], columns[k], edges[k + 1])) for k in range(len(rows))]
    return digit_by_digit(cores, rows, columns)


@pytest.mark.parametrize(("cores", "rank"), [(2, 3), (3, 2), (3, 4)])
def test_a_train_of_low_rank_is_recovered(cores: int, rank: int) -> None:
    rows, columns = parted(24, cores), parted(36, cores)
    weight = torch.from_numpy(random_train(rows, columns, rank)).float()
    form = encoded(weight, rank, cores)
    assert form.shape == weight.shape
    assert_near(form.dense(), weight, 1e-5)


def test_the_form_is_the_chain_of_its_cores() -> None:
    form = encoded(torch.randn(24, 36), 3, 3)
    first, middle, last = (part.dense().detach().double().numpy() for part in form.parts().values())
    cores = [first[None], middle, last[..., None]]
    wanted = digit_by_digit(cores, parted(24, 3), parted(36, 3))
    assert_near(form.dense(), torch.from_numpy(wanted), 1e-5)


@pytest.mark.parametrize("rank", [2, 5, 9])
def test_error_lies_between_the_largest_tail_and_their_sum(rank: int) -> None:
    """The tails of the two unfoldings of the whole tensor: no train beats either, TT-SVD is no worse than both together."""
    weight = torch.randn(24, 36)
    rows, columns = parted(24, 3), parted(36, 3)
    tensor = weight.double().numpy().reshape(*rows, *columns).transpose(0, 3, 1, 4, 2, 5)
    sizes = [row * column for row, column in zip(rows, columns, strict=True)]
    tails: list[float] = []
    for k in (1, 2):
        spectrum = np.linalg.svd(tensor.reshape(math.prod(sizes[:k]), -1), compute_uv=False)
        tails.append(float((spectrum[rank:] ** 2).sum()))
    error = float((encoded(weight, rank, 3).dense().detach() - weight).double().square().sum())
    assert max(tails) * (1 - 1e-6) <= error <= sum(tails) * (1 + 1e-6)


def test_two_cores_are_the_svd_of_the_rearranged_matrix() -> None:
    weight = torch.randn(24, 36)
    rearranged = weight.double().numpy().reshape(4, 6, 6, 6).transpose(0, 2, 1, 3).reshape(24, 36)
    assert parted(24, 2) == [4, 6]
    tail = float((np.linalg.svd(rearranged, compute_uv=False)[5:] ** 2).sum())
    error = float((encoded(weight, 5, 2).dense().detach() - weight).double().square().sum())
    assert error == pytest.approx(tail, rel=1e-4)


@pytest.mark.parametrize(
    ("layer", "inputs"), [(nn.Linear(36, 24), torch.randn(5, 36)), (nn.Embedding(60, 24), torch.randint(60, (5, 3)))]
)
def test_layers_use_the_regenerated_weight(layer: nn.Module, inputs: Tensor) -> None:
    job = TensorTrain(rank=4).apply(prepare(nn.Sequential(layer), Task(calibration=[inputs])))
    with evaluating(job.model):
        assert_near(lower(job.model)(inputs), job.model(inputs), 1e-6)
    assert model_bits(job.model) < model_bits(job.reference)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 97, 384, 768, 1000, 4096, 30522])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_parts_multiply_to_the_size(size: int, count: int) -> None:
    parts = parted(size, count)
    assert len(parts) == count
    assert math.prod(parts) == size
    assert parts == sorted(parts)


def test_the_longest_equation_has_letters_enough() -> None:
    letters = equation(MOST).split("->")[0].replace(",", "")
    assert len(set(letters)) == 3 * MOST - 1


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no fewer than the 864"):
        encoded(torch.randn(24, 36), 24, 2)
    with pytest.raises(NotApplicable, match="factors matrices only"):
        encoded(torch.randn(24, 36, 3), 2, 2)
    with pytest.raises(DataError, match="NaN"):
        encoded(torch.full((24, 36), float("nan")), 2, 2)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"rank": 2, "cores": 1}, {"rank": 2, "cores": MOST + 1}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="tensor-train: "):
        TensorTrain(**settings)  # type: ignore[arg-type]

"""Wanda against its definition in loops: the norm of each input column, then a sort within each row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.methods import SVD, MagnitudePruning, Wanda
from kogata.methods.base.compose import chain
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of


def mask_by_loops(weight: np.ndarray, norms: np.ndarray, keep: int) -> np.ndarray:
    mask = np.zeros(weight.shape, bool)
    for i, row in enumerate(weight):
        scores = [abs(float(row[j])) * norms[j] for j in range(len(row))]
        for j in sorted(range(len(row)), key=lambda j: -scores[j])[:keep]:
            mask[i, j] = True
    return mask


def kept(model: nn.Module) -> np.ndarray:
    weight = surgery.plain(model).get_parameter("weight").detach().flatten(1)
    return weight.numpy() != 0


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_linear(sparsity: float) -> None:
    model = nn.Linear(8, 5)
    batches = [torch.randn(3, 8) * torch.linspace(0.1, 3, 8), torch.randn(4, 8)]
    after = Wanda(sparsity=sparsity).apply(prepare(model, Task(calibration=batches)))
    rows = np.concatenate([batch.numpy() for batch in batches]).astype(np.float64)
    norms = np.array([math.sqrt(sum(x**2 for x in rows[:, j])) for j in range(8)])
    wanted = mask_by_loops(model.weight.detach().numpy(), norms, round((1 - sparsity) * 8))
    np.testing.assert_array_equal(kept(after.model), wanted)
    assert not np.array_equal(
        wanted, kept(MagnitudePruning(sparsity=sparsity).apply(prepare(model, Task(calibration=batches))).model)
    )


def test_convolution_unfolded_by_loops() -> None:
    model = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
    images = torch.randn(2, 2, 6, 7) * torch.tensor([0.2, 2.0])[:, None, None]
    after = Wanda(sparsity=0.5).apply(prepare(model, Task(calibration=[images])))
    padded = np.pad(images.numpy().astype(np.float64), ((0, 0), (0, 0), (1, 1), (0, 0)))
    height, width = model(images).shape[2:]
    squares = np.zeros((2, 2, 3))
    for n in range(2):
        for y in range(height):
            for x in range(width):
                for c in range(2):
                    for i in range(2):
                        for j in range(3):
                            squares[c, i, j] += padded[n, c, y + 2 * i, 2 * x + j] ** 2
    wanted = mask_by_loops(model.weight.detach().flatten(1).numpy(), np.sqrt(squares.ravel()), 6)
    np.testing.assert_array_equal(kept(after.model), wanted)


def test_groups_have_inputs_of_their_own() -> None:
    """A grouped convolution is as many convolutions side by side."""
    model = nn.Conv2d(4, 6, 3, groups=2)
    images = torch.randn(2, 4, 8, 8) * torch.tensor([0.2, 2.0, 0.7, 5.0])[:, None, None]
    found = kept(Wanda(sparsity=0.5).apply(prepare(model, Task(calibration=[images]))).model)
    for half in range(2):
        part = nn.Conv2d(2, 3, 3)
        part.weight = nn.Parameter(model.weight[3 * half : 3 * half + 3].detach())
        alone = Wanda(sparsity=0.5).apply(prepare(part, Task(calibration=[images[:, 2 * half : 2 * half + 2]])))
        np.testing.assert_array_equal(found[3 * half : 3 * half + 3], kept(alone.model))


def test_hurts_the_output_less_than_magnitude() -> None:
    """On inputs of unequal scale, which it looks at, the output error is smaller."""
    model = nn.Linear(64, 32)
    batch = torch.randn(256, 64) * torch.logspace(-1, 1, 64)[torch.randperm(64)]
    job = prepare(model, Task(calibration=[batch]))
    wanted = model(batch).detach()
    errors = [
        float((method.apply(job).model(batch).detach() - wanted).norm())
        for method in (Wanda(sparsity=0.5), MagnitudePruning(sparsity=0.5))
    ]
    assert errors[0] < 0.8 * errors[1]


def test_an_embedding_multiplies_no_inputs() -> None:
    with pytest.raises(NotApplicable, match=r"wanda: .*this is embedding"):
        Wanda(sparsity=0.5).apply(prepare(nn.Embedding(20, 8), Task(calibration=[torch.randint(0, 20, (4, 3))])))


def test_factors_have_other_inputs() -> None:
    """The right factor sees the layer's inputs, the left one does not."""
    job = prepare(nn.Linear(24, 20), Task(calibration=[torch.randn(8, 24)]))
    after = chain(SVD(rank=3), Wanda(sparsity=0.5)).apply(job)
    form = form_at(after.model, next(s for s in sites_of(after.model) if s.name == "weight"))
    assert form.describe() == "product(masked)"
    assert [part.kept() for part in form.parts().values()] == [60, 36]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_sparsity_is_checked(sparsity: float) -> None:
    with pytest.raises(UsageError, match="sparsity"):
        Wanda(sparsity=sparsity)

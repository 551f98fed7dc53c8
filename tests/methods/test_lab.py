"""LAB: signs and scale against all signs and the best scale of each, and the second moment against Adam's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from kogata.forms import Dense, Role
from kogata.methods import LAB, MagnitudePruning
from kogata.methods.quantization.lab import LossAware
from kogata.network import surgery
from tests.methods.training import QUICK, accuracy, trained


def latent_of(weight: torch.Tensor, gradients: list[torch.Tensor]) -> LossAware:
    latent = LossAware(Dense(weight.clone(), Role.MATRIX))
    for gradient in gradients:
        latent.values.values.grad = gradient
        latent.step()
    return latent


def test_signs_and_scale_are_the_minimum_over_all_signs() -> None:
    weight = torch.randn(1, 10)
    latent = latent_of(weight, [torch.randn(1, 10) ** 3 for _ in range(3)])
    d, w = latent.curvature().double()[0], weight.double()[0]
    best, wanted = float("inf"), torch.zeros(10)
    for signs in itertools.product((-1.0, 1.0), repeat=10):
        b = torch.tensor(signs, dtype=torch.float64)
        alpha = float((d * b * w).sum() / d.sum())  # the minimum over α for these signs
        if alpha > 0 and (error := float((d * (alpha * b - w) ** 2).sum())) < best:
            best, wanted = error, alpha * b
    found = latent.dense().detach().double()[0]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3  # scales are half precision
    assert float((d * (found - w) ** 2).sum()) == pytest.approx(best, rel=1e-4)
    plain = w.sign() * w.abs().mean()
    assert float((d * (plain - w) ** 2).sum()) > best * 1.001  # curvature matters here


def test_curvature_is_the_root_of_adams_second_moment() -> None:
    parameter = nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([parameter], lr=0.0)
    gradients = [torch.randn(3, 4) for _ in range(5)]
    latent = latent_of(parameter.detach(), gradients)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    moment = optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.999**5)
    assert torch.allclose(latent.curvature(), moment.sqrt() + 1e-8, rtol=1e-5)


def test_frozen_is_what_the_forward_saw() -> None:
    latent = latent_of(torch.randn(4, 9), [torch.randn(4, 9)])
    assert torch.equal(latent.freeze().dense(), latent.dense())


def test_training_learns_and_pruned_stays_pruned() -> None:
    job = trained()
    assert accuracy(LAB(recover=QUICK).apply(job).model) > 0.75
    pruned = MagnitudePruning(sparsity=0.5).apply(job)
    after = LAB(recover=QUICK).apply(pruned)
    for before, now in zip(surgery.plain(pruned.model).parameters(), surgery.plain(after.model).parameters(), strict=True):
        if before.ndim > 1:
            assert torch.equal(before == 0, now == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_give_no_nan(dtype: torch.dtype) -> None:
    latent = latent_of(torch.zeros(2, 5, dtype=dtype), [torch.zeros(2, 5, dtype=dtype)])
    assert float(latent.dense().detach().abs().max()) == 0
    assert float(latent.freeze().dense().detach().abs().max()) == 0
    rows = latent_of(torch.randn(2, 5, dtype=dtype), [torch.zeros(2, 5, dtype=dtype)])
    assert bool(torch.isfinite(rows.dense()).all())

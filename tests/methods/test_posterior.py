"""Langevin dynamics against the closed form of a Gaussian posterior, and ensembles against their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.errors import DataError, UsageError
from kogata.training.teachers.ensemble import Ensemble
from kogata.training.teachers.posterior import Sampling, sample


def half_square(output: Tensor, targets: Tensor) -> Tensor:
    """−log p of unit noise, up to a constant."""
    return (output - targets).square().sum(1).mean() / 2


def test_moments_of_a_gaussian_posterior() -> None:
    """Of linear regression with unit noise the posterior is N(A⁻¹ Xᵀy, A⁻¹), A = XᵀX + λ.

    A step ε of the dynamics stretches the covariance to A⁻¹ (1 − ε A / 4)⁻¹: that of θ ← (1 − ε A / 2) θ + √ε z.
    """
    torch.manual_seed(0)
    x = torch.randn(40, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    y = x @ torch.tensor([[1.5], [-0.5]]) + torch.randn(40, 1)
    net = nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    precision = x.T @ x + 2.0 * torch.eye(2)
    step = 0.5 / float(torch.linalg.eigvalsh(precision)[-1])
    task = Task(calibration=[x], train=[(x, y)], loss=half_square)
    drawn = sample(net, task, Sampling(samples=700, step=step, burn=50, thin=10, prior=2.0), regression=True)
    found = torch.stack([model.get_parameter("weight").detach()[0] for model in drawn.models])
    wanted = torch.linalg.inv(precision @ (torch.eye(2) - step / 4 * precision))
    mean = torch.linalg.solve(precision, x.T @ y)[:, 0]
    assert float((found.mean(0) - mean).norm()) < 3 * float((wanted.trace() / 350).sqrt())
    assert float((found.T.cov() - wanted).norm() / wanted.norm()) < 0.15
    assert torch.equal(net.weight, before)


def test_parts_of_the_data_stand_for_all_of_it() -> None:
    """With batches that are alike, one of four gives the same gradient as all."""
    torch.manual_seed(0)
    x, y = torch.randn(10, 2), torch.randn(10, 1)
    net = nn.Linear(2, 1)
    whole = Task(calibration=[x], train=[(x.repeat(4, 1), y.repeat(4, 1))], loss=half_square)
    parts = Task(calibration=[x], train=[(x, y)] * 4, loss=half_square)
    settings = Sampling(samples=2, step=1e-3, burn=5, thin=3)
    ours, theirs = (sample(net, task, settings, seed=1) for task in (whole, parts))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    other = next(sample(net, whole, settings, seed=2).parameters())
    assert not torch.allclose(other, next(ours.parameters()), atol=1e-3)


def test_ensemble_averages_probabilities() -> None:
    torch.manual_seed(0)
    models, x = [nn.Linear(4, 3) for _ in range(5)], torch.randn(7, 4)
    mean = torch.stack([model(x).softmax(1) for model in models]).mean(0)
    assert torch.allclose(Ensemble(models)(x).exp(), mean, atol=1e-6)
    assert torch.allclose(Ensemble(models)(x).softmax(1), mean, atol=1e-6)
    plain = torch.stack([model(x) for model in models]).mean(0)
    assert torch.allclose(Ensemble(models, regression=True)(input=x), plain, atol=1e-6)


def test_errors() -> None:
    net, x = nn.Linear(2, 1), torch.randn(4, 2)
    with pytest.raises(UsageError, match="no models"):
        Ensemble([])
    with pytest.raises(UsageError, match="step is 0"):
        Sampling(samples=1, step=0.0)
    with pytest.raises(DataError, match="needs training data and a loss"):
        sample(net, Task(calibration=[x]), Sampling(samples=1, step=0.1))
    with pytest.raises(DataError, match="lower the step"):
        sample(net, Task(calibration=[x], train=[(x, x[:, :1])], loss=half_square), Sampling(samples=1, step=1e9))
    with pytest.raises(DataError, match="is empty"):
        sample(net, Task(calibration=[x], train=[], loss=half_square), Sampling(samples=1, step=0.1))

"""OBD against the exact change of a quadratic loss with a diagonal Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.job import Kind, Site
from kogata.methods.pruning.obd import OBD, saliency
from kogata.network import surgery

SITE = Site("layer", "weight", (5, 6), Kind.LINEAR, Role.MATRIX)


def test_saliency_is_the_change_of_a_quadratic() -> None:
    weight, hessian = torch.randn(5, 6), torch.rand(5, 6)

    def loss(w: Tensor) -> float:
        return float((hessian.double() * (w - weight).double().square()).sum() / 2)

    found = saliency(weight, Stats(fisher=hessian))
    for o in range(5):
        for i in range(6):
            without = weight.clone()
            without[o, i] = 0
            np.testing.assert_allclose(float(found[o, i]), loss(without), rtol=1e-6)


def test_keeps_what_the_loss_would_miss_most() -> None:
    weight, hessian = torch.randn(5, 6), torch.rand(5, 6) ** 4
    dense = OBD(sparsity=0.6).encode(weight, SITE, Stats(fisher=hessian)).dense().detach()
    order = sorted(range(30), key=lambda k: float(hessian.flatten()[k] * weight.flatten()[k] ** 2))
    wanted = weight.flatten().clone()
    wanted[order[:18]] = 0
    assert torch.equal(dense.flatten(), wanted)


def classifier() -> tuple[nn.Module, Task]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(16, 6) * torch.logspace(-1, 1, 6), torch.randint(3, (16,))) for _ in range(2)]
    return model, Task(calibration=data, loss=nn.functional.cross_entropy)


def squared_gradients(model: nn.Module, task: Task) -> list[Tensor]:
    """By one backward pass for each sample."""
    weights = [model.get_parameter("0.weight"), model.get_parameter("2.weight")]
    totals = [torch.zeros_like(w) for w in weights]
    for inputs, targets in task.calibration:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        for n in range(16):
            loss = nn.functional.cross_entropy(model(inputs[n : n + 1]), targets[n : n + 1])
            for total, gradient in zip(totals, torch.autograd.grad(loss, weights), strict=True):
                total += gradient.square() / 32
    return totals


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_over_a_model(scope: str) -> None:
    model, task = classifier()
    weights = [model.get_parameter("0.weight").detach(), model.get_parameter("2.weight").detach()]
    scores = [(h * w.square()).double() for h, w in zip(squared_gradients(model, task), weights, strict=True)]
    after = surgery.plain(OBD(sparsity=0.5, scope=scope).apply(prepare(model, task)).model)  # pyright: ignore[reportArgumentType]
    masks = [after.get_parameter(name) != 0 for name in ("0.weight", "2.weight")]
    if scope == "layer":
        wanted = [score >= score.flatten().sort(descending=True).values[score.numel() // 2 - 1] for score in scores]
    else:
        ranked = torch.cat([score.flatten() for score in scores]).sort(descending=True).values
        wanted = [score >= ranked[35] for score in scores]
        assert float(masks[0].float().mean()) != float(masks[1].float().mean())
    for mask, keep in zip(masks, wanted, strict=True):
        assert torch.equal(mask, keep)


def test_without_gradient_it_is_refused() -> None:
    with pytest.raises(NotApplicable, match="gradient"):
        OBD(sparsity=0.5).encode(torch.randn(5, 6), SITE, Stats())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_sparsity_is_checked(sparsity: float) -> None:
    with pytest.raises(UsageError, match="obd: sparsity"):
        OBD(sparsity=sparsity)

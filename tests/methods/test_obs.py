"""OBS against its definition: the exact loss after the exact least-squares update, in float64."""

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
from kogata.methods import Wanda
from kogata.methods.kernels.compensated import RoundedLayer
from kogata.methods.pruning.obs import OBS, pruned, unit_cost
from kogata.network import surgery


def site(weight: Tensor) -> Site:
    return Site("layer", "weight", tuple(weight.shape), Kind.LINEAR, Role.MATRIX)


def moment(size: int, seed: int = 0) -> Tensor:
    """Of correlated numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(100, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return rows.T @ rows / 100


def damped(matrix: np.ndarray) -> np.ndarray:
    return matrix + 0.01 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def best_without(weight: np.ndarray, hessian: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """What minimises (w − v) H (w − v) with v zero at ``lost``, by the normal equations."""
    kept, found = ~lost, np.zeros_like(weight)
    found[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight)
    return found


@pytest.mark.parametrize("kronecker", [False, True])
def test_saliency_is_the_least_loss_without_the_weight(kronecker: bool) -> None:
    weight, a, g = torch.randn(3, 5), moment(5), moment(3, 1)
    found = weight.square() * unit_cost(a[None], g if kronecker else None)[0]
    hessian = np.kron(g.double().numpy() if kronecker else np.eye(3), a.double().numpy())
    flat = weight.double().numpy().ravel()
    for k in range(15):
        change = best_without(flat, hessian, np.arange(15) == k) - flat
        np.testing.assert_allclose(float(found.flatten()[k]), change @ hessian @ change / 2, rtol=1e-4)


def test_kept_weights_are_least_squares_on_the_layer() -> None:
    weight, a = torch.randn(6, 20), moment(20)
    dense = OBS(sparsity=0.5).encode(weight, site(weight), Stats(gram_GII=a[None])).dense().detach().double().numpy()
    assert np.count_nonzero(dense) == 60
    hessian = damped(a.double().numpy())
    wanted = np.stack([best_without(w, hessian, v == 0) for w, v in zip(weight.double().numpy(), dense, strict=True)])
    assert np.linalg.norm(dense - wanted) < 1e-3 * np.linalg.norm(wanted)


def surgeon(weight: np.ndarray, hessian: np.ndarray, lose: int) -> np.ndarray:
    """Optimal Brain Surgeon as published: one weight after another, each time with the inverse of what is left."""
    found, lost = weight.copy(), np.zeros(len(weight), dtype=bool)
    for _ in range(lose):
        kept = np.flatnonzero(~lost)
        inverse = np.linalg.inv(hessian[np.ix_(kept, kept)])
        lost[kept[np.argmin(found[kept] ** 2 / np.diag(inverse))]] = True
        found = best_without(weight, hessian, lost)
    return found


@pytest.mark.parametrize("kronecker", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_rounds_lose_little_more_than_one_weight_at_a_time(sparsity: float, kronecker: bool) -> None:
    ours, exact, at_once = 0.0, 0.0, 0.0
    lose = round(sparsity * 40)
    for seed in range(5):
        weight, a, g = torch.randn(4, 10, generator=torch.Generator().manual_seed(seed)), moment(10, seed), moment(4, seed)
        a, g = (torch.tensor(damped(matrix.double().numpy())).float() for matrix in (a, g))
        layer = RoundedLayer(
            weight_GOI=weight[None], gram_GII=a[None], kept_GOI=torch.ones(1, 4, 10, dtype=torch.bool), position=None
        )
        found = pruned(layer, weight.shape, sparsity, g if kronecker else None).dense().detach().double().numpy().ravel()
        hessian = np.kron(g.double().numpy() if kronecker else np.eye(4), a.double().numpy())
        w = weight.double().numpy().ravel()
        scores = w**2 / np.diag(np.linalg.inv(hessian))
        errors = [v - w for v in (found, surgeon(w, hessian, lose), best_without(w, hessian, scores < np.sort(scores)[lose]))]
        costs = [error @ hessian @ error for error in errors]
        ours, exact, at_once = ours + costs[0], exact + costs[1], at_once + costs[2]
    assert ours < (2 if kronecker else 1.25) * exact
    assert ours < (0.5 if kronecker else 0.8) * at_once


def gradient_moment(model: nn.Linear, inputs: Tensor, targets: Tensor) -> np.ndarray:
    """gᵀg of each sample, g by the closed form softmax − one-hot."""
    with torch.no_grad():
        g = torch.softmax(model(inputs), 1) - nn.functional.one_hot(targets, model.out_features)
    return (g.T @ g / len(inputs)).double().numpy()


def test_kept_weights_are_least_squares_on_the_loss() -> None:
    """The Kronecker product is formed, and its normal equations solved, for the layer at once."""
    model, inputs, targets = nn.Linear(7, 4), torch.randn(60, 7) @ torch.randn(7, 7), torch.randint(4, (60,))
    task = Task(calibration=[(inputs, targets)], loss=nn.functional.cross_entropy)
    after = surgery.plain(OBS(sparsity=0.5, hessian="kronecker").apply(prepare(model, task)).model)
    dense = after.get_parameter("weight").detach().double().numpy()
    a = damped((inputs.T @ inputs / 60).double().numpy())
    g = damped(gradient_moment(model, inputs, targets))
    weight = model.weight.detach().double().numpy()
    assert np.count_nonzero(dense) == 14
    wanted = best_without(weight.ravel(), np.kron(g, a), dense.ravel() == 0)
    assert np.linalg.norm(dense.ravel() - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_output_error_is_below_wanda() -> None:
    model, batch = nn.Linear(64, 32), torch.randn(256, 64) @ torch.randn(64, 64)
    job = prepare(model, Task(calibration=[batch]))
    wanted = model(batch).detach()
    methods = (OBS(sparsity=0.5), Wanda(sparsity=0.5))
    errors = [float((method.apply(job).model(batch).detach() - wanted).norm()) for method in methods]
    assert errors[0] < 0.8 * errors[1]


def test_a_grouped_convolution_has_no_kronecker_product() -> None:
    model = nn.Conv2d(4, 6, 3, groups=2)
    task = Task(calibration=[torch.randn(2, 4, 8, 8)])
    with pytest.raises(NotApplicable, match="Kronecker"):
        OBS(sparsity=0.5, hessian="kronecker").apply(prepare(model, task))
    assert OBS(sparsity=0.5).apply(prepare(model, task)).ledger[0].note == ""


def test_inputs_that_are_always_zero() -> None:
    weight = torch.randn(1, 12)
    dense = OBS(sparsity=0.5).encode(weight, site(weight), Stats(gram_GII=torch.zeros(1, 12, 12))).dense().detach()
    torch.testing.assert_close(dense, weight.where(weight.abs() >= weight.abs().sort().values[0, 6], 0))


@pytest.mark.parametrize("settings", [{"sparsity": 1.0}, {"damping": 0.0}, {"hessian": "diagonal"}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"obs: {next(iter(settings))}"):
        OBS(**({"sparsity": 0.5} | settings))  # pyright: ignore[reportArgumentType]

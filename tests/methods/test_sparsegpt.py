"""SparseGPT against exact least squares, brute force over masks, and exact counts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Affine, Masked, Role
from kogata.job import Kind, Site
from kogata.methods import Wanda
from kogata.methods.kernels import obs
from kogata.methods.pruning.obs import unit_cost
from kogata.methods.pruning.sparsegpt import SparseGPT
from kogata.network.sites import form_at, sites_of


def encode(method: SparseGPT, weight: Tensor, gram_II: Tensor) -> Any:
    site = Site("layer", "weight", tuple(weight.shape), Kind.LINEAR, Role.MATRIX)
    return method.encode(weight, site, Stats(gram_GII=gram_II[None]))


def gram(columns: int) -> Tensor:
    rows = torch.randn(200, columns) @ (torch.eye(columns) + 0.3 * torch.randn(columns, columns))
    return rows.T @ rows / 200


def damped(gram_II: Tensor) -> np.ndarray:
    matrix = gram_II.double().numpy()
    return matrix + 0.01 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def best_on(weight: np.ndarray, hessian: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, float]:
    """The least-squares weights of one row on the kept columns, and their loss."""
    found = np.zeros_like(weight)
    found[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight)
    return found, float((weight - found) @ hessian @ (weight - found))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_kept_weights_are_least_squares_and_counted_exactly(sparsity: float) -> None:
    weight, gram_II = torch.randn(10, 21), gram(21)
    form = encode(SparseGPT(sparsity=sparsity), weight, gram_II)
    assert isinstance(form, Masked)
    assert form.kept() == round((1 - sparsity) * 210)
    dense, hessian = form.dense().detach().double().numpy(), damped(gram_II)
    rows = weight.double().numpy()
    best = [best_on(w, hessian, v != 0) for w, v in zip(rows, dense, strict=True)]
    assert np.linalg.norm(dense - np.stack([row for row, _ in best])) < 3e-2 * np.linalg.norm(dense)
    loss = np.einsum("ri,ij,rj->", rows - dense, hessian, rows - dense)
    assert sum(loss for _, loss in best) * (1 - 1e-6) <= loss < 1.005 * sum(loss for _, loss in best)


def test_mask_is_near_the_best_of_all() -> None:
    """Brute force over the 252 masks that keep 5 of 10 weights of one row."""
    found, best = 0.0, 0.0
    for _ in range(10):
        weight, gram_II = torch.randn(1, 10), gram(10)
        hessian, row = damped(gram_II), weight[0].double().numpy()
        best += min(best_on(row, hessian, np.array(kept))[1] for kept in itertools.combinations(range(10), 5))
        difference = row - encode(SparseGPT(sparsity=0.5), weight, gram_II).dense().detach()[0].double().numpy()
        found += float(difference @ hessian @ difference)
    assert best * (1 - 1e-6) <= found < 1.5 * best


@pytest.mark.parametrize("pattern", [(2, 4), (1, 3), (7, 8)])
def test_n_of_every_m(pattern: tuple[int, int]) -> None:
    n, m = pattern
    weight, gram_II = torch.randn(6, 48), gram(48)
    dense = encode(SparseGPT(pattern=pattern), weight, gram_II).dense().detach()
    assert torch.equal((dense != 0).reshape(6, 48 // m, m).sum(2), torch.full((6, 48 // m), n))


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_output_error_is_below_that_of_simpler_ones(sparsity: float) -> None:
    model, batch = nn.Linear(96, 64), torch.randn(512, 96) @ torch.randn(96, 96)
    job = prepare(model, Task(calibration=[batch]))
    wanted = model(batch).detach()
    methods = (SparseGPT(sparsity=sparsity), Wanda(sparsity=sparsity))
    ours, wanda = (float((method.apply(job).model(batch).detach() - wanted).norm()) for method in methods)
    weight_GOI = model.weight.detach()[None]
    gram_GII = torch.tensor(damped(batch.T @ batch / len(batch))).float()[None]
    kept_GOI = obs.largest(weight_GOI.square() * unit_cost(gram_GII, None), round((1 - sparsity) * weight_GOI.numel()))
    at_once = obs.refit(weight_GOI, gram_GII, kept_GOI, weight_GOI, 40)
    assert ours < float((batch @ (at_once[0] - weight_GOI[0]).T).norm())
    assert ours < 0.7 * wanda


@pytest.mark.parametrize(("group", "bits"), [(None, 4), (5, 3), (8, 2)])
def test_pruned_and_rounded_at_once(group: int | None, bits: int) -> None:
    """The same mask as without rounding, codes of zero exactly where it has zeros, and less error than rounding afterwards."""
    weight, gram_II = torch.randn(12, 32), gram(32)
    sparse = encode(SparseGPT(sparsity=0.5), weight, gram_II).dense().detach()
    form = encode(SparseGPT(sparsity=0.5, bits=bits, group=group), weight, gram_II)
    assert isinstance(form, Affine)
    dense = form.dense().detach()
    assert bool((dense[sparse == 0] == 0).all())
    zero = form.zero.repeat_interleave(form.group, 1)[:, :32]
    assert torch.equal(form.code[sparse == 0], zero[sparse == 0])
    rounded = Affine.of(sparse, form.scale.dense().detach(), form.zero.float(), bits=bits, group=form.group)

    def loss(found: Tensor) -> float:
        return float((((found - weight) @ gram_II) * (found - weight)).sum())

    assert loss(dense) < loss(rounded.dense().detach())


def test_what_may_follow() -> None:
    """Kept floats can be rounded later; codes cannot, and that is known before anything runs."""
    job = prepare(nn.Linear(32, 16), Task(calibration=[torch.randn(64, 32)]))
    site = next(site for site in sites_of(job.model) if site.name == "weight")
    roles = {site: frozenset({Role.MATRIX}) for site in sites_of(job.model)}
    for method, role in ((SparseGPT(sparsity=0.5), Role.VALUES), (SparseGPT(sparsity=0.5, bits=4), Role.SCALE)):
        assert method.check(roles, job)[site] == {role}
        form = form_at(method.apply(job).model, site)
        assert {leaf.role for _, leaf in form.leaves()} == {role}


def test_depthwise_convolution() -> None:
    job = prepare(nn.Conv2d(6, 6, 3, groups=6), Task(calibration=[torch.randn(4, 6, 8, 8)]))
    after = SparseGPT(sparsity=0.5).apply(job)
    assert after.ledger[0].note == ""


def test_inputs_that_are_always_zero() -> None:
    dense = encode(SparseGPT(sparsity=0.5), torch.randn(1, 12), torch.zeros(12, 12)).dense().detach()
    assert bool(torch.isfinite(dense).all())
    assert np.count_nonzero(dense) == 6


def test_refusals() -> None:
    with pytest.raises(NotApplicable, match="do not divide into groups of 4"):
        encode(SparseGPT(pattern=(2, 4)), torch.randn(4, 10), gram(10))
    with pytest.raises(NotApplicable, match="changes nothing"):
        encode(SparseGPT(sparsity=0.0), torch.randn(4, 10), gram(10))
    with pytest.raises(DataError, match=r"layer\.weight"):
        encode(SparseGPT(sparsity=0.5), torch.full((4, 8), torch.inf), gram(8))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sparsity": 0.5, "pattern": (2, 4)},
        {"sparsity": 1.0},
        {"pattern": (4, 4)},
        {"sparsity": 0.5, "bits": 1},
        {"sparsity": 0.5, "group": 8},
        {"sparsity": 0.5, "damping": 0.0},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sparsegpt"):
        SparseGPT(**settings)

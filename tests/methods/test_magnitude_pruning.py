"""Magnitude pruning against exact top-k masks from NumPy, and the cubic schedule against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.job import Job
from kogata.methods import SVD, MagnitudePruning, Recover
from kogata.methods.base.compose import chain, only
from kogata.network import surgery
from kogata.network.sites import form_at, form_of, sites_of


def two_layers(scale: float = 1.0) -> Job:
    """Layers of 160 and 40 weights; those of the second are ``scale`` times as large."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 4))
    with torch.no_grad():
        model[2].weight.mul_(scale)  # type: ignore[operator]
    return prepare(model, Task(calibration=[torch.randn(4, 16)]))


def kept(job: Job) -> dict[str, np.ndarray]:
    """Where each weight is not zero."""
    found = {}
    for site in sites_of(job.model):
        if len(site.shape) == 2:
            found[site.name] = form_at(job.model, site).dense().detach().numpy() != 0
    return found


def values(job: Job, name: str) -> np.ndarray:
    return job.model.get_parameter(name).detach().numpy()


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """The mask of the ``count`` largest scores."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def lamp(weight: np.ndarray) -> np.ndarray:
    """w² / Σ w'² over |w'| ≥ |w|, by loops."""
    square = weight.astype(np.float64) ** 2
    return np.array([[x / sum(y for y in square.ravel() if y >= x) for x in row] for row in square])


@given(st.floats(0.05, 0.95))
@settings(max_examples=15, deadline=None)
def test_each_layer_keeps_its_largest(sparsity: float) -> None:
    job = two_layers()
    masks = kept(MagnitudePruning(sparsity=sparsity).apply(job))
    for name, size in (("0.weight", 160), ("2.weight", 40)):
        wanted = top(np.abs(values(job, name)), round((1 - sparsity) * size))
        np.testing.assert_array_equal(masks[name], wanted)


def test_kept_weights_are_exact_and_equal_ones_go_by_position() -> None:
    job = two_layers()
    with torch.no_grad():
        job.model.get_parameter("0.weight").copy_(torch.tensor([1.0, -1.0] * 80).reshape(10, 16))
    after = MagnitudePruning(sparsity=0.75).apply(job)
    weight = surgery.plain(after.model).get_parameter("0.weight").detach().flatten()
    assert torch.equal(weight[:40], torch.tensor([1.0, -1.0] * 20))
    assert float(weight[40:].abs().sum()) == 0


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("scope", ["global", "lamp"])
def test_one_threshold_for_all_layers(scope: str, scale: float) -> None:
    job = two_layers(scale)
    masks = kept(MagnitudePruning(sparsity=0.7, scope=scope).apply(job))  # type: ignore[arg-type]
    scores = {}
    for name in ("0.weight", "2.weight"):
        weight = values(job, name).astype(np.float64)
        scores[name] = lamp(weight) if scope == "lamp" else np.abs(weight)
    wanted = top(np.concatenate([scores["0.weight"].ravel(), scores["2.weight"].ravel()]), round(0.3 * 200))
    np.testing.assert_array_equal(masks["0.weight"], wanted[:160].reshape(10, 16))
    np.testing.assert_array_equal(masks["2.weight"], wanted[160:].reshape(4, 10))


def test_lamp_ignores_the_scale_of_a_layer() -> None:
    small, large = (kept(MagnitudePruning(sparsity=0.6, scope="lamp").apply(two_layers(s))) for s in (1.0, 1024.0))
    for name, mask in small.items():
        np.testing.assert_array_equal(mask, large[name])


def test_no_layer_vanishes_under_a_global_threshold() -> None:
    job = two_layers(1e-3)
    masks = kept(MagnitudePruning(sparsity=0.9, scope="global").apply(job))
    assert masks["2.weight"].sum() == 1
    assert masks["2.weight"].ravel()[np.abs(values(job, "2.weight")).argmax()]


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_pruning_twice_is_pruning_once(scope: str) -> None:
    """Sparsity counts earlier pruning: 50 % and then 80 % is 80 %, with the same mask."""
    first, second = (MagnitudePruning(sparsity=s, scope=scope) for s in (0.5, 0.8))  # type: ignore[arg-type]
    job = two_layers()
    twice = kept(chain(first, second).apply(job))
    for name, mask in kept(second.apply(job)).items():
        np.testing.assert_array_equal(twice[name], mask)


def test_cubic_schedule() -> None:
    """s (1 − (1 − t/4)³) for t = 1 … 4: 37/64, 56/64, 63/64 and 64/64 of s."""
    recover = Recover(epochs=1)
    steps = MagnitudePruning(sparsity=0.64, rounds=4, recover=recover).steps()
    assert [type(step) for step in steps] == [MagnitudePruning, Recover] * 3 + [MagnitudePruning]
    sparsities = [step.sparsity for step in steps if isinstance(step, MagnitudePruning)]
    assert sparsities == pytest.approx([0.37, 0.56, 0.63, 0.64])
    assert all(step.rounds == 1 and step.recover is None for step in steps if isinstance(step, MagnitudePruning))


def test_rounds_reach_the_sparsity_and_never_revive() -> None:
    job = two_layers()
    masks = kept(MagnitudePruning(sparsity=0.75, rounds=3).apply(job))
    assert [int(mask.sum()) for mask in masks.values()] == [40, 10]
    np.testing.assert_array_equal(masks["0.weight"], top(np.abs(values(job, "0.weight")), 40))


def test_factors_of_a_product_are_pruned_each() -> None:
    job = chain(SVD(rank=3), MagnitudePruning(sparsity=0.5)).apply(two_layers())
    form = form_of(job.model.get_submodule("0"), "weight")
    assert form is not None
    assert form.describe() == "product(masked, masked)"
    assert [part.kept() for part in form.parts().values()] == [15, 24]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.999])
def test_nothing_to_prune_is_refused(sparsity: float) -> None:
    with pytest.raises(NotApplicable, match=r"magnitude: .*keeping"):
        MagnitudePruning(sparsity=sparsity).apply(two_layers())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_is_checked(sparsity: float) -> None:
    with pytest.raises(UsageError, match="sparsity"):
        MagnitudePruning(sparsity=sparsity)


def test_scope_is_limited_to_the_selected_layers() -> None:
    job = two_layers()
    masks = kept(only(MagnitudePruning(sparsity=0.5, scope="global"), "2").apply(job))
    assert masks["0.weight"].all()
    assert masks["2.weight"].sum() == 20


def test_retraining_between_rounds_needs_rounds() -> None:
    with pytest.raises(UsageError, match="recover retrains between rounds, but rounds is 1"):
        MagnitudePruning(sparsity=0.5, recover=Recover(epochs=1))

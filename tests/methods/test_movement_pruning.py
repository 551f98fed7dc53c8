"""Movement pruning: scores by hand under plain gradient descent, the schedule, and which weights it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Masked
from kogata.methods import MagnitudePruning, Recover
from kogata.methods.pruning.movement_pruning import RISE, START, UPDATES, MovementPruning, Scored
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.training.wrapper import TrainingWrapper

RECOVER = Recover(epochs=1)


def scored(net: TrainingWrapper) -> list[Scored]:
    return [module for module in net.modules() if isinstance(module, Scored)]


def test_scores_are_the_sums_by_hand() -> None:
    """S = c |W_0| − η Σ_t W ∂L/∂W', and W moves only where it is kept: both written out with plain tensors."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False).double()
    inputs, targets, rate = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64), 0.1
    weight, score = layer.weight.detach().clone(), START * layer.weight.detach().abs()
    net = MovementPruning(sparsity=0.5, recover=RECOVER).begin(layer)
    (part,) = scored(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for step in range(1, 11):
        mask = part.mask.clone()
        loss = (net(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.step(progress=step / 10)
        error = inputs @ (weight * mask).T - targets
        slope = 2 * error.T @ inputs / error.numel()
        score -= rate * slope * weight
        weight -= rate * slope * mask
        assert torch.allclose(part.score.detach(), score, rtol=1e-9, atol=1e-12)
        assert torch.allclose(part.values.values.detach(), weight, rtol=1e-9, atol=1e-12)
    form = form_at(net.finish(), sites_of(layer)[0])
    assert isinstance(form, Masked)
    assert sorted(score.flatten().argsort(descending=True)[:12].tolist()) == form.position.tolist()
    assert torch.equal(form.dense().detach(), part.values.values.detach() * form.mask)


def test_sparsity_rises_by_the_cubic_schedule() -> None:
    net = MovementPruning(sparsity=0.8, recover=RECOVER).begin(nn.Linear(100, 10))
    (part,) = scored(net)
    with torch.no_grad():
        part.score.copy_(torch.rand(10, 100))
    for progress in (0.0, 0.05, 0.1, 0.2, RISE, 1.0):
        net.step(progress=progress)
        t = min(int(progress * UPDATES) / UPDATES / RISE, 1)
        assert int(part.mask.sum()) == pytest.approx(1000 * (1 - 0.8 * (1 - (1 - t) ** 3)), abs=1)
    assert int(part.mask.sum()) == 200


def test_a_weight_that_grows_is_kept_before_a_larger_one_that_shrinks() -> None:
    """Least squares with orthonormal inputs: weight 0 has to grow from 0.1, weight 1 to vanish from 1."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 1.0, 0.1, 1.0]]))
    inputs, targets = torch.eye(4), torch.tensor([[0.5], [0.0], [0.5], [0.0]])
    task = Task(calibration=[inputs], train=[(inputs, targets)] * 20, loss=lambda a, b: (a - b).square().sum())
    job = MovementPruning(sparsity=0.5, recover=Recover(epochs=10, learning_rate=3e-2, distill=0.0)).apply(prepare(layer, task))
    form = form_at(job.model, selected_sites(job)[0])
    assert isinstance(form, Masked)
    assert form.position.tolist() == [0, 2]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_final_sparsity_is_met(scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    inputs = torch.randn(64, 20)
    job = prepare(model, Task(calibration=[inputs], train=list(inputs.split(16))))
    method = MovementPruning(sparsity=0.75, scope=scope, recover=Recover(epochs=3, learning_rate=1e-2))  # type: ignore[arg-type]
    after = method.apply(job)
    forms = [form_at(after.model, site) for site in selected_sites(after)]
    kept = [int(form.mask.sum()) for form in forms if isinstance(form, Masked)]
    assert sum(kept) == 225
    assert (kept == [150, 75]) == (scope == "layer")


def test_earlier_pruning_counts() -> None:
    inputs = torch.randn(64, 20)
    job = prepare(nn.Linear(20, 30), Task(calibration=[inputs], train=list(inputs.split(16))))
    half = MagnitudePruning(sparsity=0.5).apply(job)
    after = MovementPruning(sparsity=0.75, recover=RECOVER).apply(half)
    forms = [form_at(stage.model, selected_sites(stage)[0]) for stage in (half, after)]
    before, now = (form.mask for form in forms if isinstance(form, Masked))
    assert int(now.sum()) == 150
    assert not bool((now & ~before).any())
    with pytest.raises(NotApplicable, match="already reached"):
        MovementPruning(sparsity=0.3, recover=RECOVER).apply(half)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_settings_are_checked(sparsity: float) -> None:
    with pytest.raises(UsageError, match="sparsity"):
        MovementPruning(sparsity=sparsity, recover=RECOVER)

"""ADMM: the projection's fixed point, the updates by hand, and a quadratic whose best sparse weights are known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Masked
from kogata.methods import MagnitudePruning, Recover
from kogata.methods.pruning.admm_pruning import ADMMPruning
from kogata.network.sites import form_at, selected_sites, sites_of

RECOVER = Recover(epochs=1)


def projected(values: Tensor, keep: int) -> Tensor:
    """The nearest of all vectors with ``keep`` entries that are not zero, by trying every support."""
    candidates = list[Tensor]()
    for support in itertools.combinations(range(values.numel()), keep):
        candidate = torch.zeros_like(values.flatten())
        candidate[list(support)] = values.flatten()[list(support)]
        candidates.append(candidate.reshape(values.shape))
    return min(candidates, key=lambda candidate: float((candidate - values).square().sum()))


def test_updates_are_those_of_the_paper() -> None:
    """Z, U and the penalty, by brute force, over a few rounds of other weights."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 2, bias=False)
    net = ADMMPruning(sparsity=0.625, rho=0.3, updates=4, recover=RECOVER).begin(layer)
    weight = net.get_parameter("model.weight")
    z, u = projected(weight.detach(), 3), torch.zeros(2, 4)
    for t in range(1, 5):
        assert float(net.penalty().detach()) == pytest.approx(0.15 * float((weight.detach() - z + u).square().sum()), rel=1e-5)
        with torch.no_grad():
            weight.copy_(torch.randn(2, 4))
        net.step(progress=t / 4 - 0.2)  # not yet time
        net.step(progress=t / 4)
        net.step(progress=t / 4 + 0.1)  # not again
        z = projected(weight.detach() + u, 3)
        u = u + weight.detach() - z
    form = form_at(net.finish(), sites_of(layer)[0])
    assert torch.equal(form.dense().detach(), projected(weight.detach(), 3))


def test_a_sparse_weight_is_a_fixed_point() -> None:
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.5, 0.0]]))
    net = ADMMPruning(sparsity=0.625, updates=5, recover=RECOVER).begin(layer)
    for t in range(1, 6):
        assert float(net.penalty().detach()) == 0
        net.step(progress=t / 5)
    assert torch.equal(form_at(net.finish(), sites_of(layer)[0]).dense(), layer.weight)


def test_the_sparse_solution_of_a_quadratic_is_found() -> None:
    """Twelve noiseless equations in 20 unknowns, three of which are not zero; the least-norm start suggests a wrong third."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    wanted = torch.zeros(20, dtype=torch.float64)
    wanted[[3, 8, 15]] = torch.tensor([1.0, -0.8, 0.6], dtype=torch.float64)
    targets = inputs @ wanted
    layer = nn.Linear(20, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.pinv(inputs) @ targets)
    assert set(layer.weight.detach().abs().flatten().topk(3).indices.tolist()) != {3, 8, 15}
    net = ADMMPruning(sparsity=0.85, rho=1.0, updates=80, recover=RECOVER).begin(layer)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for step in range(800):
        loss = (net(inputs).flatten() - targets).square().sum() / 24 + net.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.step(progress=(step + 1) / 800)
    dense = net.get_parameter("model.weight").detach().flatten()
    assert float((dense - wanted).norm() / wanted.norm()) < 1e-3  # before the last projection
    found = form_at(net.finish(), sites_of(layer)[0])
    assert isinstance(found, Masked)
    assert found.position.tolist() == [3, 8, 15]


def test_as_a_step_it_meets_the_sparsity_and_counts_earlier_pruning() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 20)
    job = prepare(nn.Linear(20, 30), Task(calibration=[inputs], train=list(inputs.split(16))))
    half = MagnitudePruning(sparsity=0.5).apply(job)
    for start in (job, half):
        after = ADMMPruning(sparsity=0.75, rho=1.0, recover=RECOVER).apply(start)
        form = form_at(after.model, selected_sites(after)[0])
        assert isinstance(form, Masked)
        assert int(form.mask.sum()) == 150
    with pytest.raises(NotApplicable, match="already reached"):
        ADMMPruning(sparsity=0.3, recover=RECOVER).apply(half)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"sparsity": 1.0}, "sparsity"), ({"rho": 0.0}, "rho"), ({"rho": float("inf")}, "rho"), ({"updates": 0}, "updates")],
)
def test_settings_are_checked(settings: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ADMMPruning(**{"sparsity": 0.5, "recover": RECOVER} | settings)  # type: ignore[arg-type]

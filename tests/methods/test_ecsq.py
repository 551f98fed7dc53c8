"""ECSQ against the least J over all assignments of a few weights, k-means at λ = 0, and its budget of bits over two layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Codebook, Masked, Role
from kogata.job import Job, Kind, Site
from kogata.methods import MagnitudePruning
from kogata.methods.base.compose import chain, only
from kogata.methods.sharing.ecsq import ECSQ, SAMPLE
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def objective(w: np.ndarray, h: np.ndarray, index: np.ndarray, penalty: float) -> float:
    """J of an assignment, each centroid at its weighted mean, by its definition."""
    total = 0.0
    for k in set(index.tolist()):
        mine = index == k
        centre = (h[mine] * w[mine]).sum() / h[mine].sum()
        total += float((h[mine] * (w[mine] - centre) ** 2).sum()) - penalty * mine.sum() * math.log2(mine.mean())
    return total


def encode(weight: Tensor, fisher: Tensor, penalty: float, clusters: int) -> Codebook:
    form = ECSQ(bits=1, clusters=clusters).encode_planned(penalty, weight, SITE, Stats(fisher=fisher))
    assert isinstance(form, Codebook)
    return form


def damped(fisher: Tensor) -> np.ndarray:
    """How much each weight counts."""
    h = fisher.flatten().double().numpy()
    return h + h.mean()


def random_layer(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random), torch.rand(shape, generator=random) ** 2 + 0.05


def test_no_penalty_is_hessian_weighted_k_means() -> None:
    weight, fisher = random_layer(0, 30, 40)
    wanted = HessianKMeans(clusters=9).encode(weight, SITE, Stats(fisher=fisher))
    assert torch.equal(encode(weight, fisher, 0.0, 9).dense(), wanted.dense())
    generous = ECSQ(bits=10, clusters=9).encode(weight, SITE, Stats(fisher=fisher))
    assert torch.equal(generous.dense(), wanted.dense())


@pytest.mark.parametrize("penalty", [0.003, 0.03, 0.3])
def test_near_the_least_objective_of_all_assignments(penalty: float) -> None:
    """Each step lowers J, so it ends at most where k-means starts; over many layers it is close to the best on average."""
    found, best, start = list[float](), list[float](), list[float]()
    for seed in range(6):
        weight, fisher = random_layer(seed, 1, 7)
        w, h = weight[0].double().numpy(), damped(fisher)
        found.append(objective(w, h, encode(weight, fisher, penalty, 3).index[0].numpy(), penalty))
        start.append(objective(w, h, encode(weight, fisher, 0.0, 3).index[0].numpy(), penalty))
        best.append(min(objective(w, h, np.array(a), penalty) for a in itertools.product(range(3), repeat=7)))
    assert all(b - 1e-9 <= f <= s + 1e-9 for f, b, s in zip(found, best, start, strict=True))
    assert sum(found) < 1.25 * sum(best)


def test_no_move_of_weights_gains_anything() -> None:
    """Every weight is where it costs least, as far as J can tell, and every centroid is the weighted mean of its members."""
    weight, fisher = random_layer(1, 25, 20)
    penalty = 0.02
    form = encode(weight, fisher, penalty, 12)
    w, h, index = weight.flatten().double().numpy(), damped(fisher), form.index.flatten().numpy()
    table = form.table.dense().detach().double().numpy()
    share = np.bincount(index) / len(index)
    assert (share > 0).all()
    spent = least = 0.0
    for i in range(len(w)):
        costs = [h[i] * (w[i] - c) ** 2 - penalty * math.log2(p) for c, p in zip(table, share, strict=True)]
        spent, least = spent + costs[index[i]], least + min(costs)
    assert spent <= least * (1 + 1e-4)
    for k in range(len(table)):
        assert table[k] == pytest.approx((h * w)[index == k].sum() / h[index == k].sum(), abs=1e-6)


def test_weights_that_matter_little_go_where_it_is_cheap() -> None:
    """The nearest centroid is not the cheapest one."""
    weight, fisher = torch.cat([torch.zeros(60), torch.ones(4)]), torch.ones(64)
    weight[0], fisher[0] = 0.9, 0.05
    form = encode(weight, fisher, 0.25, 2)
    assert len(form.table.dense()) == 2
    assert float(form.dense().detach()[0]) < 0.1


def test_large_layers_are_judged_by_a_sample() -> None:
    """λ comes from a part of the weights, the codebook from all of them: the budget holds within the chance of a sample."""
    weight, fisher = random_layer(2, 150, 256)
    assert weight.numel() > 2 * SAMPLE
    form = ECSQ(bits=2.0, clusters=8).encode(weight, SITE, Stats(fisher=fisher))
    assert isinstance(form, Codebook)
    share = np.bincount(form.index.flatten().numpy()) / weight.numel()
    assert float(-(share * np.log2(share)).sum()) == pytest.approx(2.0, rel=0.03)
    plain = HessianKMeans(clusters=4).encode(weight, SITE, Stats(fisher=fisher))  # at most two bits
    errors = [float((damped(fisher) * (f.dense().detach() - weight).square().flatten().numpy()).sum()) for f in (form, plain)]
    assert errors[0] < errors[1]


class TwoLayers(nn.Module):
    """Two layers side by side, of which the loss feels the first a hundredfold less."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 30), nn.Linear(20, 45)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.1 * self.first(x), self.second(x)], dim=1)


def two_layers() -> Job:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = TwoLayers()
        inputs = torch.randn(32, 20)
        batch = (inputs, model(inputs).detach() + 0.1 * torch.randn(32, 75))
    return prepare(model, Task(calibration=[batch], loss=nn.functional.mse_loss))


def entropies(job: Job) -> dict[str, tuple[int, float]]:
    """Weights and bits a weight of each layer's indices, from their histograms."""
    found: dict[str, tuple[int, float]] = {}
    for site in sites_of(job.model):
        form = form_at(job.model, site)
        form = form.values if isinstance(form, Masked) else form
        if isinstance(form, Codebook):
            share = np.bincount(form.index.flatten().numpy()) / form.index.numel()
            found[site.module] = form.index.numel(), float(-(share[share > 0] * np.log2(share[share > 0])).sum())
    return found


@pytest.mark.parametrize("bits", [1.0, 2.5])
def test_the_budget_is_spent_over_all_layers(bits: float) -> None:
    found = entropies(ECSQ(bits=bits).apply(two_layers()))
    mean = sum(n * b for n, b in found.values()) / sum(n for n, _ in found.values())
    assert 0.9 * bits < mean <= bits  # a few hundred weights: single ones move it
    assert found["second"][1] > bits > found["first"][1]


def test_one_budget_for_all_hurts_less_than_one_for_each() -> None:
    """The same bits in all, spent with one λ, leave less Σ h (w − c)² than spent evenly."""
    job = two_layers()
    joint = ECSQ(bits=2.0).apply(job)
    even = chain(only(ECSQ(bits=2.0), "first"), only(ECSQ(bits=2.0), "second")).apply(job)
    assert loss(joint) < 0.8 * loss(even)


def loss(job: Job) -> float:
    """Of the outputs against the original's."""
    inputs = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    return float((job.model(inputs) - job.reference(inputs)).detach().square().mean())


def test_kept_values_of_a_mask_count() -> None:
    found = entropies(chain(MagnitudePruning(sparsity=0.5), ECSQ(bits=2.0)).apply(two_layers()))
    assert [n for n, _ in found.values()] == [300, 450]
    assert sum(n * b for n, b in found.values()) / 750 <= 2.0


def test_refused_without_importance() -> None:
    with pytest.raises(NotApplicable, match="gradient"):
        ECSQ(bits=2).encode(torch.randn(4, 4), SITE, Stats())


@pytest.mark.parametrize("bits", [0.0, -1.0, math.inf, math.nan])
def test_bits_are_checked(bits: float) -> None:
    with pytest.raises(UsageError, match="bits"):
        ECSQ(bits=bits)


@pytest.mark.parametrize("clusters", [0, 2**15 + 1])
def test_clusters_are_checked(clusters: int) -> None:
    with pytest.raises(UsageError, match="clusters"):
        ECSQ(bits=2, clusters=clusters)

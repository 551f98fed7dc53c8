"""Hessian-weighted k-means against the exact weighted optimum in one dimension, and against the loss it is meant to spare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Codebook, Role
from kogata.job import Job, Kind, Site
from kogata.methods import KMeans, MagnitudePruning
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.methods.sharing.scalar import BINS
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def optimal_cost(values: np.ndarray, weights: np.ndarray, clusters: int) -> float:
    """Least Σ h (w − c)² over all ways to cut the sorted values into intervals."""
    order = np.argsort(values)
    x, h = values[order].astype(np.float64), weights[order].astype(np.float64)

    def one(i: int, j: int) -> float:
        centre = (h[i:j] * x[i:j]).sum() / h[i:j].sum()
        return float((h[i:j] * (x[i:j] - centre) ** 2).sum())

    n = len(x)
    best = [0.0] + [np.inf] * n
    for _ in range(clusters):
        best = [0.0] + [min(best[i] + one(i, j) for i in range(j)) for j in range(1, n + 1)]
    return best[n]


def damped(fisher: Tensor) -> Tensor:
    """How much each weight counts."""
    return fisher.double() + fisher.double().mean()


def encode(weight: Tensor, fisher: Tensor, clusters: int) -> Codebook:
    form = HessianKMeans(clusters=clusters).encode(weight, SITE, Stats(fisher=fisher))
    assert isinstance(form, Codebook)
    return form


def cost(weight: Tensor, fisher: Tensor, form: Codebook) -> float:
    return float((damped(fisher) * (form.dense().detach().double() - weight.double()).square()).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clusters", [1, 2, 5, 9])
def test_the_optimum_is_found(seed: int, clusters: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight, fisher = torch.randn(6, 8, generator=random), torch.rand(6, 8, generator=random) ** 2 + 0.01
    found = cost(weight, fisher, encode(weight, fisher, clusters))
    assert found == pytest.approx(optimal_cost(weight.flatten().numpy(), damped(fisher).flatten().numpy(), clusters), rel=1e-4)


def test_centroids_are_weighted_means_of_what_is_nearest() -> None:
    weight, fisher = torch.randn(80, 80), torch.rand(80, 80) ** 4 + 0.01
    assert weight.numel() > BINS
    form = encode(weight, fisher, 12)
    table, index = form.table.dense().detach().double(), form.index.long()
    distances = (weight.double()[..., None] - table).abs()
    assert bool((distances.gather(2, index[..., None])[..., 0] <= distances.amin(2) + 1e-6).all())
    for k in range(12):
        members, h = weight[index == k].double(), damped(fisher)[index == k]
        assert float(table[k]) == pytest.approx(float((h * members).sum() / h.sum()), abs=1e-5)


def test_equal_weights_are_plain_k_means() -> None:
    weight = torch.randn(20, 30)
    plain = KMeans(clusters=7).encode(weight, SITE, Stats())
    torch.testing.assert_close(encode(weight, torch.full((20, 30), 4.0), 7).dense(), plain.dense())


def test_weights_that_the_data_do_not_reach_get_their_nearest_centroid() -> None:
    weight, fisher = torch.tensor([[-1.0, -0.9, 1.0, 0.8]]), torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    assert encode(weight, fisher, 2).index.tolist() == [[0, 0, 1, 1]]


def inputs_of(rows: int) -> Tensor:
    """The first column is the only large one."""
    return torch.randn(rows, 24) * torch.tensor([5.0] + [0.2] * 23)


def regression() -> Job:
    """A layer whose first column has other weights than the rest, and targets around its own outputs."""
    model = nn.Linear(24, 16)
    with torch.no_grad():
        model.weight[:, 0] += 0.7
    inputs = inputs_of(200)
    targets = model(inputs).detach() + 0.1 * torch.randn(200, 16)
    return prepare(model, Task(calibration=[(inputs, targets)], loss=nn.functional.mse_loss))


def output_error(method: Method, job: Job) -> float:
    """What a method adds to the squared error on new inputs: the loss itself, but for the noise of the targets."""
    inputs = inputs_of(500)
    return float((method.apply(job).model(inputs) - job.model(inputs)).detach().square().mean())


def test_the_loss_rises_less_than_with_plain_k_means() -> None:
    job = regression()
    assert output_error(HessianKMeans(clusters=8), job) < 0.6 * output_error(KMeans(clusters=8), job)


def test_kept_values_of_a_mask() -> None:
    job = regression()
    after = chain(MagnitudePruning(sparsity=0.5), HessianKMeans(clusters=8)).apply(job)
    site = next(site for site in sites_of(after.model) if site.name == "weight")
    assert form_at(after.model, site).describe() == "masked(codebook)"


@pytest.mark.parametrize("fisher", [None, torch.ones(3, 4), torch.zeros(4, 4)])
def test_refused_without_importance(fisher: Tensor | None) -> None:
    with pytest.raises(NotApplicable, match="gradient"):
        HessianKMeans(clusters=2).encode(torch.randn(4, 4), SITE, Stats(fisher=fisher))


@pytest.mark.parametrize("clusters", [0, 2**15 + 1])
def test_clusters_are_checked(clusters: int) -> None:
    with pytest.raises(UsageError, match="clusters"):
        HessianKMeans(clusters=clusters)

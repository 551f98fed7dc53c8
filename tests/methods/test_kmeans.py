"""K-means against the exact optimum in one dimension, and the gradient of shared weights against their members'.

The optimum is found by dynamic programming over the sorted values (Wang and Song, "Ckmeans.1d.dp", The R Journal 2011):
D[k, j] = min over i of D[k − 1, i] + cost of one cluster over values i … j.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Codebook, Role
from kogata.job import Kind, Site
from kogata.methods import KMeans
from kogata.methods.sharing.scalar import BINS, nearest
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def optimal_cost(values: np.ndarray, clusters: int) -> float:
    """Least sum of squares of ``values`` in ``clusters`` clusters."""
    x = np.sort(values.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(p)]) for p in (x, x**2))
    first, last = np.arange(len(x))[:, None], np.arange(1, len(x) + 1)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        table = squares[last] - squares[first] - (sums[last] - sums[first]) ** 2 / (last - first)  # [first, last]
    table = np.where(last > first, np.maximum(table, 0), np.inf)
    best = np.concatenate([[0.0], table[0]])  # of the first j values
    for _ in range(clusters - 1):
        best = np.concatenate([[0.0], (best[:-1, None] + table).min(0)])
    return float(best[-1])


def encode(weight: Tensor, clusters: int) -> Codebook:
    form = KMeans(clusters=clusters).encode(weight, SITE, Stats())
    assert isinstance(form, Codebook)
    return form


def cost(weight: Tensor, clusters: int) -> float:
    """Squared error of the method."""
    return float((encode(weight, clusters).dense().detach() - weight).double().square().sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clusters", [1, 2, 4, 7, 12, 30])
def test_the_optimum_is_found(seed: int, clusters: int) -> None:
    weight = torch.randn(8, 9, generator=torch.Generator().manual_seed(seed))
    assert cost(weight, clusters) == pytest.approx(optimal_cost(weight.flatten().numpy(), clusters), rel=1e-4)


def test_large_layers_are_near_the_optimum() -> None:
    """Past ``BINS`` values it searches among groups of them, and Lloyd's steps do the rest."""
    weight = torch.cat([torch.randn(5000) * 0.05, torch.tensor([1.0, -1.0, 0.7])])
    assert len(weight) > BINS
    best = optimal_cost(weight.numpy(), 16)
    assert best * (1 - 1e-4) <= cost(weight, 16) <= 1.1 * best


def test_separated_clusters_are_found_exactly() -> None:
    centres = torch.tensor([-2.0, -0.5, 0.25, 3.0])
    weight = centres.repeat(16).reshape(8, 8) + 1e-3 * torch.randn(8, 8)
    assert cost(weight, 4) == pytest.approx(optimal_cost(weight.flatten().numpy(), 4), rel=1e-4)


def test_outliers_do_not_waste_clusters() -> None:
    weight = torch.cat([torch.randn(1000) * 0.05, torch.tensor([1.0, -1.0])])
    assert encode(weight, 16).table.shape == (16,)
    assert cost(weight, 16) == pytest.approx(optimal_cost(weight.numpy(), 16), rel=1e-4)


weight_lists = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=60)


@given(weight_lists, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_assignments_are_nearest_and_centroids_are_means(numbers: list[float], clusters: int) -> None:
    weight = torch.tensor(numbers)
    form = encode(weight, clusters)
    table, index = form.table.dense().detach(), form.index.long()
    distances = (weight.double()[:, None] - table.double()[None, :]).abs()
    chosen = distances.gather(1, index[:, None])[:, 0]
    slack = 1e-6 * (1 + float(weight.abs().max()))  # centroids are kept in float32
    assert bool((chosen <= distances.amin(1) + slack).all())
    for k in range(len(table)):
        members = weight[index == k].double()
        assert len(members) > 0
        assert float(members.mean()) == pytest.approx(float(table[k]), abs=slack)
    assert len(table) <= clusters


def test_few_distinct_values_are_kept_exactly() -> None:
    weight = torch.tensor([0.0, 1.0, -4.0, 1.0, 0.0, -4.0, -4.0]).reshape(7, 1)
    form = encode(weight, 8)
    assert torch.equal(form.dense(), weight)
    assert form.table.shape == (3,)


def test_constant_weight() -> None:
    assert torch.equal(encode(torch.full((4, 4), 0.3), 5).dense(), torch.full((4, 4), 0.3))


def test_halfway_goes_to_the_lower_centroid() -> None:
    assert nearest(torch.tensor([0.5, 0.51, -9.0, 9.0]), torch.tensor([0.0, 1.0])).tolist() == [0, 1, 0, 1]


def test_gradient_of_a_centroid_is_the_sum_of_its_members() -> None:
    """∂L/∂c_k = Σ ∂L/∂w_ij over members (equation 3 of Deep Compression), by hand and by finite differences."""
    weight, direction = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    form = encode(weight.float(), 4).double()
    loss = (form.dense() * direction).square().sum()
    loss.backward()
    table, index = form.get_submodule("table").get_parameter("values"), form.index
    assert table.grad is not None
    by_weight = 2 * form.dense().detach() * direction.square()
    by_hand = [float(by_weight[index == k].sum()) for k in range(len(table))]
    assert table.grad.tolist() == pytest.approx(by_hand)
    for k in range(len(table)):
        step = 1e-5
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                table[k] += sign * step
                losses.append(float((form.dense() * direction).square().sum()))
                table[k] -= sign * step
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(by_hand[k], rel=1e-5)


def test_large_codebook_uses_a_wider_index() -> None:
    weight = torch.linspace(-1, 1, 1200).reshape(30, 40)
    form = encode(weight, 600)
    assert form.index.dtype == torch.int16
    assert float((form.dense().detach() - weight).abs().max()) <= 2 / 599


@pytest.mark.parametrize("clusters", [0, -1, 2**15 + 1])
def test_clusters_are_checked(clusters: int) -> None:
    with pytest.raises(UsageError, match="clusters"):
        KMeans(clusters=clusters)


def test_biases_are_left_alone() -> None:
    job = prepare(nn.Linear(32, 32), Task(calibration=[torch.randn(2, 32)]))
    after = KMeans(clusters=4).apply(job)
    assert [row.site for row in after.ledger] == ["weight"]
    assert {site.name: form_at(after.model, site).describe() for site in sites_of(after.model)} == {
        "bias": "dense", "weight": "codebook",
    }  # fmt: skip

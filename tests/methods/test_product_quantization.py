"""Product quantization against nearest rows and means by loops, and the best of all partitions of a few points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.forms.vectors import Vectors
from kogata.job import Kind, Site
from kogata.methods import Half
from kogata.methods.base.compose import chain
from kogata.methods.sharing.product_quantization import ProductQuantization
from kogata.methods.sharing.subvectors import clustered, refined
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def encode(weight: Tensor, clusters: int, length: int) -> Vectors:
    form = ProductQuantization(clusters=clusters, length=length).encode(weight, SITE, Stats())
    assert isinstance(form, Vectors)
    return form


@pytest.mark.parametrize(("shape", "length"), [((40, 12), 4), ((40, 13), 4), ((30, 4, 3, 3), 5), ((30, 2), 2)])
def test_each_sub_vector_is_the_nearest_row_and_each_row_a_mean(shape: tuple[int, ...], length: int) -> None:
    weight = torch.randn(shape)
    form = encode(weight, 6, length)
    rows = weight.flatten(1).double().numpy()
    dense, index = form.dense().detach().flatten(1).numpy(), form.index.numpy()
    table = form.table.dense().detach().double().numpy()
    assert table.shape == (-(-rows.shape[1] // length), 6, length)
    for s in range(table.shape[0]):
        at = slice(s * length, min((s + 1) * length, rows.shape[1]))
        entries = table[s][:, : at.stop - at.start]
        for o in range(rows.shape[0]):
            distances = ((rows[o, at] - entries) ** 2).sum(1)
            assert distances[index[o, s]] <= distances.min() + 1e-5
            np.testing.assert_array_equal(dense[o, at], entries[index[o, s]].astype(np.float32))
        for k in range(6):
            members = rows[index[:, s] == k][:, at]
            assert len(members)
            np.testing.assert_allclose(entries[k], members.mean(0), atol=1e-5)


def least_cost(points: np.ndarray, clusters: int) -> float:
    """Of all ways to sort the points into clusters."""
    member = np.array(list(itertools.product(range(clusters), repeat=len(points))))[:, None] == np.arange(clusters)[:, None]
    sums, counts = member @ points, member.sum(2)  # [partitions, clusters, D] and [partitions, clusters]
    explained = ((sums**2).sum(2) / np.maximum(counts, 1)).sum(1)  # Σ ‖x − mean‖² = Σ ‖x‖² − Σ n ‖mean‖²
    return float((points**2).sum() - explained.max())


def test_near_the_best_partition() -> None:
    """Lloyd's steps may end in another minimum, so on average over many sub-spaces."""
    weight = torch.randn(8, 2 * 20, generator=torch.Generator().manual_seed(0))
    error = (encode(weight, 3, 2).dense().detach() - weight).double().square().reshape(8, 20, 2).sum((0, 2))
    best = [least_cost(weight[:, 2 * s : 2 * s + 2].double().numpy(), 3) for s in range(20)]
    assert all(float(e) >= b - 1e-5 for e, b in zip(error, best, strict=True))
    assert float(error.sum()) < 1.25 * sum(best)


def test_separated_clusters_are_found_exactly() -> None:
    centres = torch.tensor([[0.0, 0.0, 9.0], [5.0, 0.0, 0.0], [0.0, -7.0, 0.0], [3.0, 3.0, 3.0]])
    weight = torch.cat([centres.repeat(16, 1), centres.flip(0).repeat(16, 1)], dim=1)
    assert float((encode(weight, 4, 3).dense().detach() - weight).abs().max()) < 1e-5


def test_an_empty_cluster_moves_to_the_farthest_point() -> None:
    """Three centroids start in one place, which no Lloyd's step would ever part."""
    points = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.0, 50.0], [9.0, 0.0], [9.1, 0.0]]])
    index, table = refined(points, torch.zeros(1, 3, 2))
    assert len(index.unique()) == 3
    error = (points[0] - table[0, index[0]]).square().sum()
    assert float(error) == pytest.approx(least_cost(points[0].double().numpy(), 3), rel=1e-4)


def test_few_distinct_rows_are_kept_exactly() -> None:
    weight = torch.randn(3, 8).repeat(10, 1)
    assert torch.allclose(encode(weight, 7, 4).dense(), weight, atol=1e-6)


def test_sub_spaces_do_not_depend_on_each_other_s_number() -> None:
    """Worked on in pieces, a large layer gives sub-vectors as good as a small one."""
    points = torch.randn(6, 200, 4)
    index, table = clustered(points, 16)
    assert index.shape == (200, 6)
    assert table.shape == (6, 16, 4)
    errors = (points - torch.stack([table[s, index[:, s]] for s in range(6)])).square().sum((1, 2))
    assert float(errors.max()) < 0.6 * float(points.square().sum((1, 2)).min())


def test_same_weight_same_codes() -> None:
    weight = torch.randn(64, 16)
    first, second = encode(weight, 8, 4), encode(weight.clone(), 8, 4)
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.dense(), second.dense())


def test_convolution_in_a_chain() -> None:
    model = nn.Conv2d(8, 64, 3)
    job = prepare(model, Task(calibration=[torch.randn(2, 8, 6, 6)]))
    after = chain(ProductQuantization(clusters=4, length=9), Half()).apply(job)
    site = next(site for site in sites_of(after.model) if site.name == "weight")
    form = form_at(after.model, site)
    assert form.describe() == "vectors"
    assert form.stored_bits() <= 64 * 8 * 2 + 4 * 72 * 16  # two bits for each sub-vector, and tables in half precision
    assert after.ledger[0].note == ""


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((20,), "no rows"), ((20, 3), "3 entries"), ((8, 9), "8 rows"), ((1, 9), "1 rows")],
)
def test_refusals(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        ProductQuantization(clusters=8, length=4).encode(torch.randn(shape), SITE, Stats())


@pytest.mark.parametrize(("clusters", "length", "what"), [(0, 2, "clusters"), (2**15 + 1, 2, "clusters"), (4, 0, "length")])
def test_settings_are_checked(clusters: int, length: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ProductQuantization(clusters=clusters, length=length)

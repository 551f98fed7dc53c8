"""HashedNets: signed means and signed sums of gradients by loops over the buckets."""

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
from kogata.forms.tied import Tied
from kogata.job import Kind, Site
from kogata.methods import KMeans, MagnitudePruning, Recover
from kogata.methods.base.compose import chain
from kogata.methods.sharing.hashed import Hashed
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def encode(weight: Tensor, fraction: float, site: Site = SITE) -> Tied:
    form = Hashed(fraction=fraction).encode(weight, site, Stats())
    assert isinstance(form, Tied)
    return form


@pytest.mark.parametrize("shape", [(9, 14), (4, 3, 3, 3)])
def test_each_weight_is_the_signed_mean_of_its_bucket(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    form = encode(weight, 0.2)
    flat, index, sign = weight.flatten().numpy(), form.index.flatten().tolist(), form.sign.flatten().tolist()
    assert form.kept() == round(0.2 * len(flat))
    dense = form.dense().detach().flatten().tolist()
    for p in range(len(flat)):
        bucket = [q for q in range(len(flat)) if index[q] == index[p]]
        mean = sum(sign[q] * float(flat[q]) for q in bucket) / len(bucket)
        assert dense[p] == pytest.approx(sign[p] * mean, abs=1e-6)


def test_gradient_of_a_bucket_is_the_signed_sum() -> None:
    form, direction = encode(torch.randn(9, 14), 0.1), torch.randn(9, 14)
    (form.dense() * direction).square().sum().backward()
    by_weight = (2 * form.dense().detach() * direction.square()).flatten().numpy()
    wanted = np.zeros(form.kept())
    for g, k, s in zip(by_weight, form.index.flatten().tolist(), form.sign.flatten().tolist(), strict=True):
        wanted[k] += s * g
    gradient = form.get_submodule("base").get_parameter("values").grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_layers_have_hashes_of_their_own() -> None:
    weight = torch.randn(20, 30)
    one, same = encode(weight, 0.1), encode(weight, 0.1)
    other = encode(weight, 0.1, Site("other", "weight", (0,), Kind.LINEAR, Role.MATRIX))
    assert torch.equal(one.index, same.index)
    assert float((one.index == other.index).float().mean()) < 0.1


def test_training_recovers_and_keeps_the_tie() -> None:
    model = nn.Linear(24, 16)
    inputs = torch.randn(128, 4) @ torch.randn(4, 24)  # training can do what projecting cannot: look at the inputs
    job = prepare(model, Task(calibration=[inputs], train=[inputs]))
    hashed = Hashed(fraction=0.25).apply(job)
    after = Recover(epochs=40, learning_rate=0.02).apply(hashed)
    wanted = model(inputs).detach()
    before, now = (float((j.model(inputs).detach() - wanted).square().sum()) for j in (hashed, after))
    assert now < 0.5 * before
    weight = surgery.plain(after.model).get_parameter("weight").detach()
    assert len(weight.abs().unique()) <= round(0.25 * weight.numel())


def test_buckets_are_pruned_and_shared_like_weights() -> None:
    job = prepare(nn.Linear(64, 64), Task(calibration=[torch.randn(2, 64)]))
    after = chain(Hashed(fraction=0.25), MagnitudePruning(sparsity=0.5), KMeans(clusters=8)).apply(job)
    site = next(site for site in sites_of(after.model) if site.name == "weight")
    form = form_at(after.model, site)
    assert form.describe() == "tied(masked(codebook))"
    assert form.kept() == 512
    assert len(form.dense().detach().abs().unique()) <= 9


def test_no_bucket_or_no_gain_is_refused() -> None:
    for fraction in (0.01, 0.99):
        with pytest.raises(NotApplicable, match="buckets"):
            encode(torch.randn(4, 4), fraction)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(UsageError, match="fraction"):
        Hashed(fraction=fraction)

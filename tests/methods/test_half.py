"""Half precision against NumPy's float16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Role
from kogata.job import Kind, Site, Where
from kogata.methods import Half, KMeans
from kogata.methods.base.compose import chain, only
from kogata.network.sites import form_at, sites_of

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=40))
def test_equals_numpy(numbers: list[float]) -> None:
    weight = np.array(numbers, np.float32)
    found = Half().encode(torch.from_numpy(weight), SITE, Stats()).dense().detach().numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weight.astype(np.float16).astype(np.float32))


def test_stored_in_half_the_bits() -> None:
    job = prepare(nn.Linear(32, 32), Task(calibration=[torch.randn(2, 32)]))
    site = next(site for site in sites_of(job.model) if site.name == "weight")
    after = Half().apply(job)
    assert form_at(after.model, site).stored_bits() == 16 * 32 * 32
    assert after.model.weight.dtype == torch.float32


def test_too_large_is_refused() -> None:
    with pytest.raises(NotApplicable, match="65,504"):
        Half().encode(torch.tensor([1e5]), SITE, Stats())


def test_leaves_keep_their_roles() -> None:
    job = prepare(nn.Linear(32, 32), Task(calibration=[torch.randn(2, 32)]))
    after = chain(KMeans(clusters=4), Half(), only(Half(), Where(vectors=True))).apply(job)
    roles = {site.name: [leaf.role for _, leaf in form_at(after.model, site).leaves()] for site in sites_of(after.model)}
    assert roles == {"weight": [Role.TABLE], "bias": [Role.VECTOR]}

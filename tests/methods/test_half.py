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
from kogata.job import Job, Kind, Site, Where
from kogata.methods import Half, KMeans
from kogata.methods.base.compose import chain, only
from kogata.network.sites import form_at, sites_of
from kogata.storage.write import pack

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


def normalized() -> Job:
    """Batch normalization whose statistics are no halves, one of them out of the range of half precision."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    for layer in (net[1], net[4]):
        layer.get_buffer("running_mean").normal_()
        layer.get_buffer("running_var").uniform_(0.5, 2)
    net[4].get_buffer("running_var")[3] = 1e-6
    return prepare(net, Task(calibration=[torch.randn(4, 3, 8, 8)]))


def test_running_statistics_are_rounded_where_half_precision_holds_them() -> None:
    job = normalized()
    before = {name: tensor.clone() for name, tensor in job.model.named_buffers()}
    after = Half(buffers=True).apply(job)
    found = dict(after.model.named_buffers())
    for name, tensor in job.model.named_buffers():
        assert torch.equal(tensor, before[name]), "the job that was given is as it was"
    for name, tensor in Half().apply(job).model.named_buffers():  # they follow the weights before they are rounded
        kept = name == "4.running_var" or not tensor.is_floating_point()
        wanted = tensor if kept else torch.from_numpy(tensor.numpy().astype(np.float16).astype(np.float32))
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], wanted)
    rows = {row.site: row for row in after.ledger}
    assert "normal range" in rows["4.running_var"].note
    assert (rows["1.running_mean"].bits_before, rows["1.running_mean"].bits_after) == (32 * 16, 16 * 16)
    assert 0 < (rows["1.running_mean"].predicted or 0) < 2**-20
    assert len(pack(after.model).data) < len(pack(Half().apply(job).model).data) - 3 * 16


def test_buffers_are_left_alone_unless_asked_for_and_picked() -> None:
    job = normalized()
    first = Where(layers=("0*",))
    without, unpicked = (only(Half(buffers=asked), first).apply(job).model for asked in (False, True))
    assert all(map(torch.equal, unpicked.buffers(), without.buffers()))
    followed = without.get_buffer("1.running_mean")
    assert not torch.equal(followed, followed.half().float()), "it is no half, though it follows the rounded weight"
    torch.testing.assert_close(followed, job.model.get_buffer("1.running_mean"), rtol=0, atol=1e-3)
    again = Half(buffers=True)
    once = Half().apply(job)
    late, early = again.apply(once).model, again.apply(job).model
    assert torch.equal(late.get_buffer("1.running_var"), early.get_buffer("1.running_var"))
    bare = prepare(nn.Linear(32, 32), Task(calibration=[torch.randn(2, 32)]))
    with pytest.raises(NotApplicable, match="nothing to do"):
        again.apply(again.apply(bare))

"""Half precision against NumPy's float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from kogata import Task, compress
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Role
from kogata.job import Job, Kind, Site, Where
from kogata.methods import Half, KMeans
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.methods.quantization.half import ALREADY, RUNNING
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of
from kogata.recipes.recipe import open_recipe
from kogata.storage.load import load
from kogata.storage.write import pack, save
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=40))
def test_equals_numpy(numbers: list[float]) -> None:
    weight = np.array(numbers, np.float32)
    assume(not np.array_equal(weight, weight.astype(np.float16)))
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


VECTORS = only(Half(), Where(vectors=True))
HALVES = ("0.bias", "1.weight", "1.bias", "3.bias")


class Frozen(nn.Module):
    """A normalization layer without parameters, as detectors have them: everything is a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight, bias, mean, var = (self.get_buffer(name)[:, None, None] for name in ("weight", "bias", *RUNNING))
        return (x_NCHW - mean) / (var + 1e-5).sqrt() * weight + bias


def normalized() -> Job:
    """Normalization of two kinds, whose statistics are no halves, and a buffer of a layer that does not normalize.

    ``HALVES``, the vectors in front of statistics, hold halves already: rounding vectors then moves no statistics before it
    rounds these.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), Frozen(16)
    )
    for layer in (net[1], net[4]):
        layer.get_buffer("running_mean").normal_()
        layer.get_buffer("running_var").uniform_(0.5, 2)
        layer.get_parameter("weight").data.uniform_()
        layer.get_parameter("bias").data.uniform_()
    for name in HALVES:
        net.get_parameter(name).data = halved(net.get_parameter(name))
    net[1].get_buffer("running_mean")[0] = 1e-6  # no normal half-precision number, but not 0 either
    net[2].register_buffer("table", torch.rand(16))
    return prepare(net, Task(calibration=[torch.randn(4, 3, 8, 8)]))


def halved(tensor: Tensor) -> Tensor:
    return torch.from_numpy(tensor.detach().numpy().astype(np.float16).astype(np.float32))


def test_vectors_and_running_statistics_come_back_from_the_file_as_numpy_rounds_them(tmp_path: Path) -> None:
    job = normalized()
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    after = VECTORS.apply(job)
    path = tmp_path / "model.kogata"
    save(after.model, path)
    found = surgery.plain(load(path, into=normalized().model)).state_dict()
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(job.model.state_dict()[name], tensor), "the job that was given is as it was"
        stays = name in ("0.weight", "3.weight", "2.table") or not tensor.is_floating_point()
        wanted = tensor if stays else halved(tensor)
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], wanted), name
        assert stays or name in HALVES or not torch.equal(wanted, tensor)


def test_ledger_names_every_float_buffer() -> None:
    job = normalized()
    after = VECTORS.apply(job)
    rows = {row.site: row for row in after.ledger}
    buffers = {name for name, tensor in job.model.named_buffers() if tensor.is_floating_point()}
    vectors = {name for name, tensor in job.model.named_parameters() if tensor.dim() == 1}
    assert rows.keys() == buffers | vectors
    assert {name for name, row in rows.items() if row.note} == {"2.table", *HALVES}
    assert "running statistics" in rows["2.table"].note
    row, values = rows["1.running_var"], job.model.get_buffer("1.running_var")
    assert (row.bits_before, row.bits_after) == (32 * 16, 16 * 16)
    wanted = (halved(values) - values).double().square().sum() / values.double().square().sum()
    assert row.predicted == pytest.approx(float(wanted), rel=1e-6)
    assert len(pack(after.model).data) < len(pack(job.model).data) - 2 * 16 * len(buffers)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1e-8, "become 0"),
        (2.9e-8, "become 0"),
        (-1e-30, "become 0"),
        (65520.0, "65,504"),
        (torch.inf, "65,504"),
        (torch.nan, "NaN"),
    ],
)
def test_a_buffer_that_half_precision_cannot_hold_stays_and_is_named(number: float, words: str) -> None:
    job = normalized()
    buffer = job.model.get_buffer("4.running_mean")
    buffer[3] = number
    after = VECTORS.apply(job)
    assert torch.equal(after.model.get_buffer("4.running_mean").view(torch.int32), buffer.view(torch.int32))
    (row,) = (row for row in after.ledger if row.site == "4.running_mean")
    assert words in row.note
    assert row.bits_after == row.bits_before
    assert torch.equal(after.model.get_buffer("4.running_var"), halved(job.model.get_buffer("4.running_var")))


@pytest.mark.parametrize("number", [0.0, -0.0, 3e-8, -3e-8, 65504.0, 65519.0])
def test_a_buffer_that_half_precision_just_holds_is_rounded(number: float) -> None:
    job = normalized()
    job.model.get_buffer("4.running_mean")[3] = number
    found = VECTORS.apply(job).model.get_buffer("4.running_mean")
    assert torch.equal(found, halved(job.model.get_buffer("4.running_mean")))
    assert bool(found[3]) == bool(number)


@pytest.mark.parametrize(
    "method",
    [Half(), only(Half(), Where(layers=("0*",), vectors=True)), only(Half(), Where(kinds=(Kind.CONV,)))],
)
def test_buffers_that_are_not_selected_stay(method: Method) -> None:
    """They are not rounded; statistics behind rounded weights follow these, as after any other step."""
    job = normalized()
    job.model.get_parameter("0.bias").data += 1e-5
    after = method.apply(job)
    assert after.renewed == ("1", "4")
    before = dict(job.model.named_buffers())
    for name, found in after.model.named_buffers():
        if name.rpartition(".")[0] not in after.renewed or not found.is_floating_point():
            assert torch.equal(found, before[name]), name
        else:
            assert_near(found, before[name], 1e-3)
            assert not torch.equal(found, halved(found)), name


def test_buffers_are_rounded_where_no_vector_is_left_to_round() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16, affine=False))
    net[1].get_buffer("running_var").uniform_(0.5, 2)
    job = prepare(net, Task(calibration=[torch.randn(4, 3, 8, 8)]))
    once = VECTORS.apply(job)
    assert torch.equal(once.model.get_buffer("1.running_var"), halved(net[1].get_buffer("running_var")))
    assert [row.note for row in once.ledger if row.site == "1.running_mean"] == [ALREADY]
    with pytest.raises(NotApplicable, match="nothing to do"):
        VECTORS.apply(once)


def test_built_in_recipe_takes_a_model_without_vectors() -> None:
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    result = compress(net, Task(calibration=[torch.randn(8, 64)]), open_recipe("4-bit"), engine=None)
    assert [bool(step.note) for step in result.report.steps] == [False, True]

"""A head on averaged maps: the least squares solution, and the function of pooling and a smaller linear layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.engines.lowering.lower import lower
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Product
from kogata.methods.base.compose import only
from kogata.methods.distillation.global_pooling import GlobalPooling
from kogata.network.sites import form_at, sites_of
from kogata.storage.load import load
from kogata.storage.write import save


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5)).eval()


@torch.no_grad()
def test_it_is_pooling_and_the_best_head_on_it(tmp_path: Path) -> None:
    net = build()
    x = torch.randn(200, 3, 6, 6)
    job = only(GlobalPooling(places=16), "3").apply(prepare(net, Task(calibration=[x])))
    maps = net[:2](x)
    pooled, wanted = maps.mean((2, 3)).double(), (maps.flatten(1) @ net[3].weight.T).double()
    head = torch.linalg.lstsq(pooled, wanted).solution
    by_hand = pooled @ head + net[3].bias
    assert float((job.model(x) - by_hand).norm() / by_hand.norm()) < 1e-4
    save(job.model, tmp_path / "m.kogata")
    loaded = load(tmp_path / "m.kogata", into=build())
    assert torch.equal(loaded(x), job.model(x))
    assert torch.allclose(lower(loaded)(x), job.model(x), atol=1e-5)
    assert {type(form_at(loaded, site)) for site in sites_of(loaded) if site.name == "3.weight"} == {Product}


@torch.no_grad()
def test_maps_that_are_the_same_everywhere_lose_nothing() -> None:
    net = build()
    x = torch.randn(50, 3, 1, 1).expand(-1, -1, 6, 6)
    job = only(GlobalPooling(places=16), "3").apply(prepare(net, Task(calibration=[x])))
    assert float((job.model(x) - net(x)).norm() / net(x).norm()) < 1e-4


def test_refusals() -> None:
    job = prepare(build(), Task(calibration=[torch.randn(4, 3, 6, 6)]))
    with pytest.raises(NotApplicable, match="its 96 inputs do not divide into maps of 9 positions"):
        only(GlobalPooling(places=9), "3").apply(job)
    with pytest.raises(UsageError, match="places is 1"):
        GlobalPooling(places=1)

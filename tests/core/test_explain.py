"""The loss of each layer's change: off by default, and then measured for the layers whose weights changed most."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import kogata
from kogata import Task
from kogata.calibration import probe as probing
from kogata.calibration.prepare import prepare
from kogata.calibration.probe import Probe
from kogata.job import Job, Role
from kogata.methods import KMeans, RoundToNearest, Shallower
from kogata.network.sites import form_at, sites_of
from kogata.report.terminal import render


def stack(layers: int = 5) -> Job:
    """A job whose later layers have larger weights, and so larger changes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(layers))).eval()
    with torch.no_grad():
        for n in range(layers):
            model.get_parameter(f"{n}.weight").mul_(1 + n)
    return prepare(model, Task(calibration=[torch.randn(8, 16)]))


def test_off_by_default() -> None:
    rows = RoundToNearest(bits=2).apply(stack()).ledger
    assert all(row.loss is None and row.predicted is not None for row in rows)


def test_measured_for_those_that_changed_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST", 2)
    job = replace(stack(), explain=True)
    after = RoundToNearest(bits=2).apply(job)
    sites, base = {site.name: site for site in sites_of(job.model)}, Probe(job)
    changes = {
        name: float((form_at(after.model, site).dense() - form_at(job.model, site).dense()).detach().square().sum())
        for name, site in sites.items() if site.role is Role.MATRIX
    }  # fmt: skip
    largest = sorted(changes, key=lambda name: -changes[name])[:2]
    assert largest == ["4.weight", "3.weight"]
    for row in after.ledger:
        assert (row.loss is not None) == (row.site in largest)
        if row.loss is not None:
            assert row.loss == pytest.approx(base.change(sites[row.site], form_at(after.model, sites[row.site])))
    assert RoundToNearest(bits=2).apply(job).ledger == after.ledger


def test_shallower_explains_each_layer_it_drops() -> None:
    job = replace(stack(), explain=True)
    after = Shallower(keep=2).apply(job)
    probe = Probe(job)
    for row in after.ledger:
        without = nn.Sequential(*(layer for name, layer in job.model.named_children() if name != row.site))
        assert row.loss == pytest.approx(probe.loss(without) - probe.base)
    assert all(row.loss is None for row in Shallower(keep=2).apply(stack()).ledger)


def text_of(explain: bool, folder: Path) -> tuple[str, str]:
    """What a run says of its layers, in the terminal and as a page."""
    job, stream = stack(), io.StringIO()
    result = kogata.compress(job.model, job.task, KMeans(clusters=4), output=folder, engine=None, explain=explain)
    render(result.report, Console(file=stream, width=100))
    return stream.getvalue(), (folder / "report.html").read_text(encoding="utf-8")


def test_the_report_says_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST", 2)
    plain, page = text_of(False, tmp_path / "plain")
    layers = plain[plain.index("Layers") : plain.index("Rest of the file")]
    assert "error" in layers
    assert "loss" not in layers
    assert ">Error</th>" in page
    assert "With --explain" in page
    assert ">Loss</th>" not in page
    assert 'id="chart-loss"' not in page
    explained, page = text_of(True, tmp_path / "explained")
    layers = explained[explained.index("Layers") : explained.index("Rest of the file")]
    assert "error" not in layers
    assert layers.count("not measured") == 3
    assert ">Loss</th>" in page
    assert 'id="chart-loss"' in page

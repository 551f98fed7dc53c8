"""Low-rank convolutions: separable, Tucker-2 and CP at two rates on two CIFAR-10 nets, after one short recovery each.

Every convolution with an extent but the first keeps one part in ``rate`` of its numbers. All runs see the same training batches
with the original as teacher. Errors are those of the model reloaded from its file, on the 10,000 test images; times are of the
lowered graphs in ONNX Runtime, interleaved with the dense net's in one run.

A run that was interrupted goes on, and a finished one is not repeated: delete ``runs/low_rank_convolutions/`` to measure anew.
Arguments name the only networks to train, so that two can be trained side by side.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata import artifact, surgery
from kogata.batch import call, take
from kogata.calibrate import first_batch
from kogata.candidates import STRUCTURES
from kogata.compress import compress
from kogata.engines import OnnxRuntime
from kogata.engines.latency import interleaved
from kogata.folder import Folder
from kogata.job import Kind, Site
from kogata.method import Method, WeightMethod, chain, per_site
from kogata.methods import CP, SVD, Recover, Separable, Tucker2
from kogata.report.data import Report
from kogata.tasks.taskfile import open_task

MINUTES = 60
SEED = 0
RUNS = Path(__file__).parent.parent / "runs" / "low_rank_convolutions"
TASKS = ("cifar-resnet20", "cifar-vgg-small")
KINDS = (Separable, Tucker2, CP)
RATES = (2.7, 5.0)
RECOVERY = Recover(epochs=4, learning_rate=2e-3)
BATCHES = (1, 64)
LOST, FASTER = 0.2, 1.5  # points at the lower rate, and times: what the survey's table 2 reports of large nets


def at_rate(kind: type[Method], shape: tuple[int, ...], rate: float) -> WeightMethod | None:
    """The method with the rank that leaves one part in ``rate`` of a convolution's numbers; None where it leaves no rank.

    A kernel of one place is a matrix, whatever the method.
    """
    name = SVD.ABOUT.name if math.prod(shape[2:]) == 1 else kind.ABOUT.name
    return dict(STRUCTURES)[name](shape, 1 / rate)


def plan(kind: type[Method], sites: Sequence[Site], rate: float) -> Method:
    """Every convolution but the first at the rate."""
    methods = {site.name: at_rate(kind, site.shape, rate) for site in [s for s in sites if s.kind is Kind.CONV][1:]}
    return per_site({name: method for name, method in methods.items() if method is not None})


def spatial(model: nn.Module) -> list[Site]:
    """The convolutions with an extent."""
    return [site for site in surgery.sites(model) if site.kind is Kind.CONV and math.prod(site.shape[2:]) > 1]


def folder(task: str, kind: type[Method], rate: float) -> Folder:
    """Where a run is kept."""
    return Folder(RUNS / f"{task}-{kind.ABOUT.name}-{rate:g}")


def trained(task: str, kind: type[Method], rate: float) -> Report:
    """The report of one run."""
    kept = folder(task, kind, rate)
    if kept.finished:
        return Report.load(kept.report)
    model, opened = open_task(task, SEED, None)
    method = chain(plan(kind, spatial(model), rate), RECOVERY)
    return compress(model, opened, method, output=kept.path, seed=SEED, engine=None, resume=kept.path.exists()).report


def times(task: str, batch: int) -> dict[tuple[str, float], float]:
    """How many times faster than the dense net each file is, by method and rate: medians of one interleaved run."""
    model, opened = open_task(task, SEED, None)
    inputs, engine = first_batch(model, opened)[0], OnnxRuntime()
    names = [(kind, rate) for kind in KINDS for rate in RATES]
    files = [artifact.load(folder(task, *name).model, into=surgery.clone(model)).eval() for name in names]
    sample = take(inputs, batch)
    sessions = [engine.open_model(net, inputs) for net in (model, *files)]
    dense, *ours = interleaved([lambda session=session: call(session, sample) for session in sessions])
    return {(kind.ABOUT.name, rate): dense.p50 / latency.p50 for (kind, rate), latency in zip(names, ours, strict=True)}


def rows(task: str) -> list[Row]:
    """One net: its own error, then each method at each rate."""
    reports = {(kind.ABOUT.name, rate): trained(task, kind, rate) for kind in KINDS for rate in RATES}
    speeds = {batch: times(task, batch) for batch in BATCHES}
    dense = next(iter(reports.values())).dense
    found = [
        Row(f"{task}, dense", "test error", round(100 - (dense.score or 0), 6), "%"),
        Row(f"{task}, dense", "file", dense.bytes, "bytes"),
    ]
    for (name, rate), report in reports.items():
        case, lost = f"{task}, {name} at {rate:g}x", round((dense.score or 0) - (report.compressed.score or 0), 6)
        low = rate == RATES[0]
        found += [
            Row(case, "points lost", lost, "%", LOST if low else None, "<=" if low else None),
            Row(case, "file", report.compressed.bytes, "bytes"),
            Row(case, "parameters", dense.parameters / report.compressed.parameters, "x fewer"),
            *(Row(case, f"time, batch {batch}", speed[name, rate], "x faster") for batch, speed in speeds.items()),
        ]
    best = max(speed[name, RATES[0]] for speed in speeds.values() for name, rate in speed if rate == RATES[0])
    return [*found, Row(task, f"time at {RATES[0]:g}x, best", best, "x faster", FASTER, ">=")]


def main() -> int:
    """Everything, or only the training of the networks that are named."""
    if len(sys.argv) > 1:
        for task in sys.argv[1:]:
            for kind in KINDS:
                for rate in RATES:
                    trained(task, kind, rate)
        return 0
    torch.manual_seed(SEED)
    return harness.run("low_rank_convolutions", [row for task in TASKS for row in rows(task)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

"""Low-rank convolutions: separable, Tucker-2 and CP at two rates on two CIFAR-10 nets, each after a short recovery.

All convolutions larger than 1×1, except the first, together keep 1 / ``rate`` of their parameters. The ranks are allocated by
their effect on the loss of one calibration batch, before any training. Ranks are multiples of 16 channels, which suits ONNX
Runtime's fast memory layout, or of 8 at the higher rate, for which multiples of 16 are too large. A layer may keep at most 0.7
of its parameters, so that it becomes cheaper; a layer without such a rank stays dense.

All runs train for 4 epochs on the same batches with the original as teacher (the originals were trained for 24 and 25 epochs);
the original trained further alike is listed for comparison. Errors are those of the model reloaded from its file, on the 10,000
test images; times are those of the lowered graphs in ONNX Runtime, measured alternately with the dense net. The allocation of
ranks was found to help on 5,000 held-out training images; the multiples and the limit of 0.7 were chosen by times and by the
loss of the calibration batch, before training. The 4 epochs are a limit of compute.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/low_rank_convolutions/`` to measure again.
Arguments name the only networks to train, so that two can be trained side by side.
"""

from __future__ import annotations

import math
import sys
from itertools import count

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.calibration.batches import first_batch
from kogata.calibration.probe import Probe
from kogata.calibration.stats import Stats
from kogata.engines import OnnxRuntime
from kogata.errors import NotApplicable
from kogata.flow import compress
from kogata.job import Job, Kind, Site, Task
from kogata.measure.latency import interleaved
from kogata.methods import CP, Recover, Separable, Tucker2
from kogata.methods.base.allocation import Option, allocated, hull
from kogata.methods.base.compose import chain, per_site
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.batch import call, take
from kogata.network.sites import form_at, sites_of
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.tasks.taskfile import open_task

MINUTES = 120
SEED = 0
RUNS = harness.runs("low_rank_convolutions")
TASKS = ("cifar-resnet20", "cifar-vgg-small")
RATES = {2.7: 16, 5.0: 8}  # rate: ranks are multiples of this
MOST = 0.7  # largest fraction of its numbers that a factorized layer may hold
Structure = type[Separable] | type[Tucker2] | type[CP]
Case = tuple[Structure, float] | None  # a method at a rate; None is the dense net
LOW_RANK = [(kind, rate) for rate in RATES for kind in (Separable, Tucker2, CP)]
CASES: list[Case] = [*LOW_RANK, None]
RECOVERY = Recover(epochs=4, learning_rate=2e-3)
BATCHES = (1, 64)
LOW, LOST, FASTER = 2.7, 0.2, 1.5  # bars as in the survey's table 2: a rate, points lost, speed-up


def spatial(model: nn.Module) -> list[Site]:
    """The convolutions larger than 1×1, without the first."""
    return [site for site in sites_of(model) if site.kind is Kind.CONV and math.prod(site.shape[2:]) > 1][1:]


def plan(kind: Structure, model: nn.Module, task: Task, rate: float) -> Method:
    """One method per convolution, with ranks that keep 1 / ``rate`` of all parameters at the least increase of the loss."""
    sites, probe = spatial(model), Probe(Job(model=model, reference=model, task=task, seed=SEED))
    layers = [hull(options(kind, RATES[rate], form_at(model, site).dense().detach(), site, probe)) for site in sites]
    chosen = allocated(layers, sum(math.prod(site.shape) for site in sites) / rate)
    methods = {site.name: option.choice for site, option in zip(sites, chosen, strict=True)}
    return per_site({name: method for name, method in methods.items() if method is not None})


def options(kind: Structure, step: int, weight: Tensor, site: Site, probe: Probe) -> list[Option[WeightMethod | None]]:
    """The options for a weight: a method (None for dense), its stored numbers, and its change of the loss when used alone."""
    found = list[Option[WeightMethod | None]]()
    for rank in count(step, step):
        method = kind(rank=rank)
        try:
            form = method.encode(weight, site, Stats())
        except NotApplicable:  # the factors hold no fewer numbers than the weight
            break
        if form.kept() > MOST * weight.numel():
            break
        found.append(Option(method, form.kept(), probe.change(site, form)))
    return found or [Option(None, weight.numel(), 0.0)]


def folder(task: str, case: Case) -> Folder:
    """The folder of a run."""
    return Folder(RUNS / f"{task} {named(case)}".replace(" ", "-"))


def named(case: Case) -> str:
    """The name of a case in the results."""
    return "dense trained on alike" if case is None else f"{case[0].ABOUT.name} at {case[1]:g}x"


def trained(task: str, case: Case) -> Report:
    """The report of one run, trained unless there is a report already."""
    kept = folder(task, case)
    if kept.finished:
        return Report.load(kept.report)
    model, opened = open_task(task, SEED, None)
    method = RECOVERY if case is None else chain(plan(case[0], model, opened, case[1]), RECOVERY)
    return compress(model, opened, method, output=kept.path, seed=SEED, engine=None, resume=kept.path.exists()).report


def times(task: str, batch: int) -> dict[Case, float]:
    """The speed-up of each file over the dense net: medians of ratios, measured alternately in one run."""
    model, opened = open_task(task, SEED, None)
    inputs, engine = first_batch(model, opened)[0], OnnxRuntime()
    files = [load(folder(task, case).model, into=surgery.clone(model)).eval() for case in LOW_RANK]
    sample = take(inputs, batch)
    sessions = [engine.open_model(net, inputs) for net in (model, *files)]
    turns = interleaved([lambda session=session: call(session, sample) for session in sessions])
    return {case: turns.speedup(0, number) for number, case in enumerate(LOW_RANK, 1)}


def rows(task: str) -> list[Row]:
    """The rows of one net: its own error, then each method at each rate."""
    reports = {case: trained(task, case) for case in CASES}
    speeds = {batch: times(task, batch) for batch in BATCHES}
    dense = reports[None].dense
    found = [
        Row(f"{task}, dense", "test error", round(100 - (dense.score or 0), 6), "%"),
        Row(f"{task}, dense", "file", dense.bytes, "bytes"),
    ]
    for case, report in reports.items():
        name, lost = f"{task}, {named(case)}", round((dense.score or 0) - (report.compressed.score or 0), 6)
        low = case is not None and case[1] == LOW
        found.append(Row(name, "points lost", lost, "%", LOST if low else None, "<=" if low else None))
        if case is not None:
            found += [
                Row(name, "file", report.compressed.bytes, "bytes"),
                Row(name, "parameters", dense.parameters / report.compressed.parameters, "x fewer"),
                *(Row(name, f"time, batch {batch}", speed[case], "x faster") for batch, speed in speeds.items()),
            ]
    best = max(speed[case] for speed in speeds.values() for case in LOW_RANK if case[1] == LOW)
    return [*found, Row(task, f"time at {LOW:g}x, best", best, "x faster", FASTER, ">=")]


def main() -> int:
    """Run everything, or only train the networks named as arguments."""
    if len(sys.argv) > 1:
        for task in sys.argv[1:]:
            for case in CASES:
                trained(task, case)
        return 0
    torch.manual_seed(SEED)
    return harness.run("low_rank_convolutions", [row for task in TASKS for row in rows(task)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

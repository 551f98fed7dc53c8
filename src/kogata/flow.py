"""The flow, from a trained model to one small file and its report. Read it top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from kogata.calibration.prepare import prepare
from kogata.calibration.probe import Probe
from kogata.engines import DEFAULT_ENGINE, Engine
from kogata.job import Job, Step, Task
from kogata.measure import compare
from kogata.methods.base.method import Method
from kogata.methods.base.order import check_order
from kogata.network import surgery
from kogata.network.sites import model_bits
from kogata.recipes.recipe import Recipe
from kogata.report import html
from kogata.report.data import Report
from kogata.storage.folder import Folder, open_folder
from kogata.storage.load import load
from kogata.storage.write import foreign_forms, pack, write_file

log = logging.getLogger("kogata.run")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a compression gave: the folder of the run, the file in it, the model loaded back from it, and the report."""

    folder: Path
    path: Path
    model: nn.Module
    report: Report


def compress(
    model: nn.Module, task: Task, method: Method | Recipe, *, teacher: nn.Module | None = None,
    output: Path | str | None = None, seed: int = 0, engine: Engine | None = DEFAULT_ENGINE, resume: bool = False,
    explain: bool = False, command: str = "",
) -> Result:  # fmt: skip
    """Compress ``model`` by ``method``, write ``model.kogata``, and measure what was read back from it.

    The teacher of every recovery, with which the report compares the file, is ``model`` itself, or another network for the same
    task: ``teacher``, of which ``model`` is then the student.
    ``output`` is a folder that must be new or empty, unless ``resume`` goes on with an interrupted run; None makes a temporary
    one. ``engine`` None measures no latency. With ``explain`` the report also says what the change of each layer alone does to
    the loss on the first calibration batch: one forward for each, for the 64 layers of a step whose weights changed most, and
    for the channels or layers that a step removes. Raises a KogataError that says what to do; the model is never changed.

    >>> import torch, kogata
    >>> from kogata.methods import KMeans
    >>> model = torch.nn.Linear(256, 256)
    >>> result = kogata.compress(model, kogata.Task(calibration=[torch.randn(8, 256)]), KMeans(clusters=4), engine=None)
    >>> result.report.alpha > 10
    True
    """
    recipe = method if isinstance(method, Recipe) else Recipe(name=method.title(), method=method)
    folder = open_folder(output, resume=resume)
    job = replace(prepare(model, task, seed=seed), explain=explain)
    if teacher is not None:
        job = replace(job, reference=prepare(teacher, task, seed=seed).model)
        Probe(job)  # raises DataError where the student's outputs must be like the teacher's and are not
    check_order(recipe.method, job)
    folder.begin(recipe.resolved(), job, resume=resume)
    with folder.logging():
        job, steps = run(job, recipe.method.steps(), folder)
        log.info("packing %s", folder.model)
        graph, notes = compare.graph(job, engine)
        packed = pack(job.model, graph)
        write_file(folder.model, packed)
        loaded = load(folder.model, into=surgery.clone(model), forms=foreign_forms(job.model))
        job = replace(job, model=loaded)  # nothing else is trusted now
        log.info("measuring in %s", engine.name if engine else "PyTorch")
        report = compare.report(job, model, recipe, steps, packed, folder, engine, notes, command)
        if teacher is not None:
            report = replace(report, names=("teacher", "student"))
        html.write(report, folder.page)
        report.save(folder.report)
        folder.finish()
    return Result(folder=folder.path, path=folder.model, model=job.model, report=report)


def run(job: Job, methods: Sequence[Method], folder: Folder) -> tuple[Job, list[Step]]:
    """Apply each step that the folder does not already hold, and checkpoint after it."""
    job, steps = folder.restore(job)
    for number, method in enumerate(methods[len(steps) :], len(steps) + 1):
        log.info("step %d of %d: %s", number, len(methods), method.title())
        started, before = time.perf_counter(), model_bits(job.model)
        job = method.apply(replace(job, folder=folder.checkpoints, epochs=()))
        steps.append(Step(
            name=method.title(), settings=method.settings(), seconds=time.perf_counter() - started, bits_before=before,
            bits_after=model_bits(job.model), loss=Probe(job).base, epochs=job.epochs,
        ))  # fmt: skip
        folder.save(job, steps)
    return job, steps

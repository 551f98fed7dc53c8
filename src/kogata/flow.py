"""The whole flow, from a trained model to one compressed file and its report. Read it top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from kogata.calibration.prepare import first_job
from kogata.calibration.probe import Probe
from kogata.engines import DEFAULT_ENGINE, Engine
from kogata.errors import NotApplicable, UsageError
from kogata.job import Job, Step, Task
from kogata.measure import compare
from kogata.methods.base.method import Method
from kogata.methods.base.order import check_order
from kogata.network import surgery
from kogata.network.sites import model_bits, unwrapped
from kogata.recipes.budgets import budget
from kogata.recipes.recipe import Recipe
from kogata.recipes.targets import check_measurable
from kogata.report import html
from kogata.report.data import Report
from kogata.storage.folder import Folder, open_folder
from kogata.storage.load import load
from kogata.storage.write import foreign_forms, pack, write_file
from kogata.system.modes import ordinary

log = logging.getLogger("kogata.run")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a compression.

    ``folder`` is the folder of the run, ``path`` the ``.kogata`` file in it, ``model`` the model loaded back from that file,
    and ``report`` the sizes, scores and latencies measured on it. The folder of a run without ``output`` is temporary: it is
    deleted together with this object.
    """

    folder: Path
    path: Path
    model: nn.Module
    report: Report


@ordinary()
def compress(
    model: nn.Module, task: Task, method: Method | Recipe | None = None, *, bytes: int | str | None = None,
    teacher: nn.Module | None = None, output: Path | str | None = None, seed: int = 0,
    engine: Engine | None = DEFAULT_ENGINE, resume: bool = False, explain: bool = False, command: str = "",
) -> Result:  # fmt: skip
    """Compress ``model`` by ``method``, write ``model.kogata``, and measure the model that is read back from the file.

    ``model`` is never changed. Every error raised on purpose is a KogataError whose message says what to do: UsageError for
    settings, DataError for the model or its data, NotApplicable when the order is illegal or the first step can change nothing.
    A later step that can change nothing is named in the notes of the report.

    >>> import torch, kogata
    >>> from kogata.methods import KMeans
    >>> model = torch.nn.Linear(256, 256)
    >>> result = kogata.compress(model, kogata.Task(calibration=[torch.randn(8, 256)]), KMeans(clusters=4), engine=None)
    >>> result.report.alpha > 10
    True

    :param method: a method, a ``chain`` of them, or a recipe opened by ``open_recipe``.
    :param bytes: in place of a method: the size of the whole file, as a number, "2.3MB" or "1/20" of the dense file. The recipe
        ``budget`` is then used.
    :param teacher: another network for the same task. It takes the place of ``model`` as the teacher of every recovery and as
        the baseline of the report; ``model`` is then the student.
    :param output: the folder of the run, which must be new or empty unless ``resume`` is set. None makes a
        temporary folder, which is deleted with the result.
    :param seed: makes the run repeatable.
    :param engine: where to measure latency; None measures none.
    :param resume: continue an interrupted run in ``output``. Model, data, seed and thread count must be those of that run; the
        steps of ``method`` must begin with those that it finished.
    :param explain: also measure by how much the loss on the first calibration batch rises when each layer alone is changed.
        It takes one forward pass for each of the 64 layers of a step whose weights changed most, and for each group of channels
        or layer that a step removes.
    :param command: the command line to show in the report.
    """
    model = unwrapped(model)
    recipe = _recipe(method, bytes)
    job = replace(first_job(model, task, seed=seed), explain=explain)
    job = replace(job, file_bytes=partial(_file_bytes, job, engine))
    if teacher is not None:
        job = replace(job, reference=first_job(teacher, task, seed=seed).model)
        Probe(job)  # raises DataError where the student's outputs must be like the teacher's and are not
    check_measurable(recipe.targets, scored=task.evaluate is not None, timed=engine is not None)
    check_order(recipe.method, job)
    folder, methods = open_folder(output, resume=resume), recipe.method.steps()
    with folder.running(recipe.resolved(), [method.settings() for method in methods], job, resume=resume):
        job, steps = run(job, methods, folder)
        log.info("packing %s", folder.model)
        graph, notes = compare.graph(job, engine)
        packed = pack(job.model, graph)
        write_file(folder.model, packed)
        loaded = load(folder.model, into=surgery.clone(model, share=False), forms=foreign_forms(job.model))
        job = replace(job, model=loaded)  # nothing else is trusted now
        log.info("measuring in %s", engine.name if engine else "PyTorch")
        report = compare.report(job, model, recipe, steps, packed, folder, engine, notes, command)
        if teacher is not None:
            report = replace(report, names=("teacher", "student"))
        html.write(report, folder.page)
        report.save(folder.report)
        folder.finish()
    result = Result(folder=folder.path, path=folder.model, model=job.model, report=report)
    folder.leave_to(result)
    return result


def _recipe(method: Method | Recipe | None, size: int | str | None) -> Recipe:
    """The recipe of a run. Raises UsageError unless either a method or the size of the file is given."""
    if (method is None) == (size is None):
        raise UsageError("compress: give either a method (or a recipe) or bytes, the size of the file.")
    if method is None:
        return budget(cast("int | str", size))
    return method if isinstance(method, Recipe) else Recipe(name=method.title(), method=method)


def _file_bytes(job: Job, engine: Engine | None, model: nn.Module) -> int:
    """The size of the file of a model, with the graph of the engine."""
    return len(pack(model, compare.graph(replace(job, model=model), engine)[0]).data)


def run(job: Job, methods: Sequence[Method], folder: Folder) -> tuple[Job, list[Step]]:
    """Apply each step for which the folder holds no checkpoint yet, and write one after it."""
    job, steps = folder.restore(job)
    for number, method in enumerate(methods[len(steps) :], len(steps) + 1):
        log.info("step %d of %d: %s", number, len(methods), method.title())
        started, before = time.perf_counter(), model_bits(job.model)
        fresh = replace(job, folder=folder.training(number), epochs=(), renewed=(), remarks=())
        job, note = _applied(method, fresh, done=bool(steps))
        steps.append(Step(
            name=method.title(), settings=method.settings(), seconds=time.perf_counter() - started, bits_before=before,
            bits_after=model_bits(job.model), loss=Probe(job).base, epochs=job.epochs, note=note,
            renewed=job.renewed, remarks=job.remarks,
        ))  # fmt: skip
        folder.save(job, steps)
    return job, steps


def _applied(method: Method, job: Job, *, done: bool) -> tuple[Job, str]:
    """The job after a method. If it can change nothing and earlier steps are ``done``, the same job, and the reason why."""
    try:
        return method.apply(job), ""
    except NotApplicable as error:
        if not done:
            raise
        log.warning("this step changed nothing: %s", error)
        return job, str(error)

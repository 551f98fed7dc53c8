"""Measure the file and the model read back from it: bytes, score and latency, compared with the dense original."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from kogata.calibration.batches import first_batch
from kogata.calibration.costs import macs
from kogata.engines import Engine, Session
from kogata.engines.lowering.checked import lowered
from kogata.engines.lowering.costs import EAGER
from kogata.engines.lowering.layout import channels_last
from kogata.errors import DataError, EngineError
from kogata.forms import Role
from kogata.job import Job, Row, Step, Task
from kogata.measure.latency import interleaved
from kogata.measure.times import layer_times
from kogata.methods.base.selection import by_reason
from kogata.network import surgery
from kogata.network.batch import call, evaluating, length
from kogata.network.rows import first_rows
from kogata.network.sites import form_at, left_alone, sites_of
from kogata.recipes.recipe import Recipe
from kogata.report.data import Latency, Layer, PlaneLine, Report, Side
from kogata.storage.dense import dense_bytes
from kogata.storage.extra import extra_states
from kogata.storage.folder import Folder
from kogata.storage.layout import Artifact, EngineGraph, PackedFile, Stored
from kogata.storage.read import read_file
from kogata.storage.write import foreign_forms
from kogata.system.environment import environment

log = logging.getLogger("kogata")
FIXED = "Latencies are those of the whole first calibration batch: the engine's graph takes no other batch size."


def graph(job: Job, engine: Engine | None) -> tuple[EngineGraph | None, list[str]]:
    """The engine graph for the file, if the engine uses graphs; None, with a note, when the model cannot be exported."""
    if engine is None:
        return None, []
    try:
        return engine.graph(job.model, first_batch(job.reference, job.task)[0]), []
    except EngineError as error:
        log.warning("%s", error)
        return None, [f"{error} The file can only be loaded with the model's class."]


def sessions(path: Artifact, loaded: nn.Module, dense: nn.Module, inputs: Any, engine: Engine) -> tuple[Session, Session]:
    """Load the dense model and the file into the engine. Raises EngineError when one of them cannot run."""
    return engine.open_model(dense, inputs), engine.open_file(path, loaded, inputs)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The latencies of the dense model and of the file in one engine, and how many times as fast the file is (δ)."""

    dense: Latency
    ours: Latency
    delta: float


def speed(ours: Session, dense: Session, sample: Any) -> Speed:
    """Time the file and the dense model on ``sample``, in turns."""
    turns = interleaved([lambda: call(dense, sample), lambda: call(ours, sample)])
    return Speed(dense=turns.latency(0), ours=turns.latency(1), delta=turns.speedup(0, 1))


def runnable(pair: Sequence[Session], sample: Any, inputs: Any) -> Any:
    """``sample``, or the whole batch where a session takes no other size than that of ``inputs``."""
    try:
        for session in pair:
            call(session, sample)
    except DataError:
        return inputs
    return sample


def score(task: Task, model: nn.Module) -> float | None:
    """The score of a model in evaluation mode by the task's ``evaluate``. Raises DataError when it is not finite."""
    if task.evaluate is None:
        return None
    with evaluating(model):
        value = float(task.evaluate(model))
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(f"task {task.name!r}: evaluate() returned {value}; expected a finite score, higher is better.")
    return value


def report(
    job: Job, original: nn.Module, recipe: Recipe, steps: Sequence[Step], packed: PackedFile, folder: Folder,
    engine: Engine | None, notes: list[str], command: str,
) -> Report:  # fmt: skip
    """Measure everything for the report.

    ``job.model`` is the model loaded back from the file, and ``original`` is the model that was given. The file is compared
    with ``job.reference``, its layers with those of ``original``.
    """
    inputs = first_batch(job.reference, job.task)[0]
    sample = first_rows(job.reference, inputs)
    dense, ours = job.reference, job.model
    measured: Speed | None = None
    if engine is not None and not notes:  # a note says that the engine cannot run this model
        stored = read_file(folder.model, forms=foreign_forms(job.model), into=job.reference)
        try:
            dense, ours = sessions(stored, job.model, job.reference, inputs, engine)
            engine.export(stored, folder.engine)
            timed = runnable((dense, ours), sample, inputs)
            measured = speed(ours, dense, timed)
            notes = notes if timed is sample else [*notes, FIXED]
        except EngineError as error:  # the file is valid nevertheless, so the report is made without a latency
            notes = [*notes, str(error)]
    built = Report(
        title=f"{job.task.name} · {recipe.name}", task=job.task.name, engine=engine.name if engine else None, command=command,
        seed=job.seed, recipe=recipe.resolved(), environment=environment(),
        dense=Side(
            bytes=dense_bytes(job.reference), score=score(job.task, dense),
            parameters=sum(p.numel() for p in job.reference.parameters()), latency_ms=measured and measured.dense,
        ),
        compressed=Side(
            bytes=folder.model.stat().st_size, score=score(job.task, ours),
            parameters=sum(form_at(job.model, site).kept() for site in sites_of(job.model)),
            latency_ms=measured and measured.ours,
        ),
        delta=measured and measured.delta,
        layers=layers(job, original, packed, sample, engine), rest_bytes=rest(packed, job.model),
        steps=tuple(steps),
        notes=(
            *notes, *_idle(steps), *_remarks(steps), *_renewed(steps), *_extra(job.model), *_whole(sample, inputs), *_left(job),
        ),
        targets={target.goal: target.text for target in recipe.targets},
    )  # fmt: skip
    return dataclasses.replace(built, missed=tuple(m for t in recipe.targets if (m := t.miss(built))))


def layers(job: Job, original: nn.Module, packed: PackedFile, sample: Any, engine: Engine | None) -> tuple[Layer, ...]:
    """One entry for each matrix of the loaded model. With an engine it includes the layer's time, measured in PyTorch."""
    sites = [site for site in sites_of(job.model) if site.role is Role.MATRIX]
    costs = macs(original, sample)
    spent: dict[str, dict[str, float]] = {"dense": {}, "ours": {}}
    if engine is not None:
        plain, ours = surgery.densify(surgery.clone(original)), lowered(job.model, sample, EAGER, engine.rules)
        pair = {"dense": channels_last(plain), "ours": channels_last(ours)}
        spent = layer_times(pair, {site.module for site in sites}, sample)
    stored, changes = defaultdict[str, list[Stored]](list), defaultdict[str, list[Row]](list)
    for plane in packed.planes:
        stored[plane.site].append(plane)
    for row in job.ledger:
        changes[row.site].append(row)
    found: list[Layer] = []
    for site in sites:
        form = form_at(job.model, site)
        planes = tuple(
            PlaneLine(
                name=plane.plane, elements=plane.elements, coder=plane.coder, bytes=plane.bytes,
                packed_bytes=plane.packed_bytes, entropy_bytes=plane.entropy_bits / 8,
            )
            for plane in stored[site.name]
        )  # fmt: skip
        losses = [row.loss for row in changes[site.name] if row.loss is not None]
        errors = [row.predicted for row in changes[site.name] if row.predicted is not None]
        increases = [row.increase for row in changes[site.name] if row.increase is not None]
        dense = cast("Tensor", getattr(original.get_submodule(site.module), site.parameter))
        found.append(Layer(
            site=site.name, kind=site.kind, shape=site.shape, form=form.describe(), parameters=form.kept(),
            macs=costs.get(site.name), dense_bytes=dense.numel() * dense.itemsize,
            bytes=sum(plane.bytes for plane in planes), dense_ms=spent["dense"].get(site.module),
            ms=spent["ours"].get(site.module), loss=sum(losses) if losses else None, planes=planes,
            error=sum(errors) if errors else None, increase=sum(increases) if increases else None,
        ))  # fmt: skip
    return tuple(found)


def rest(packed: PackedFile, loaded: nn.Module) -> dict[str, int]:
    """The bytes of the file that belong to no layer. Together with those of the layers they sum to the size of the file."""
    matrices = {site.name for site in sites_of(loaded) if site.role is Role.MATRIX}
    others = sum(plane.bytes for plane in packed.planes if plane.site not in matrices)
    return {
        "header": packed.header_bytes, "manifest": packed.manifest_bytes, "graph": packed.graph_bytes,
        "biases and buffers": others,
    }  # fmt: skip


def _idle(steps: Sequence[Step]) -> list[str]:
    """The steps that changed nothing, each with the reason."""
    return [f"step {number} changed nothing: {step.note}" for number, step in enumerate(steps, 1) if step.note]


def _remarks(steps: Sequence[Step]) -> list[str]:
    """What the steps assumed, predicted and measured."""
    return [f"step {number} ({step.name}): {text}" for number, step in enumerate(steps, 1) for text in step.remarks]


def _renewed(steps: Sequence[Step]) -> list[str]:
    """The steps that running statistics followed."""
    return [
        f"step {number} ({step.name}): the running statistics of {len(step.renewed)} batch normalization "
        f"layer{'s' if len(step.renewed) > 1 else ''} moved by what the step changed in their inputs on the calibration data."
        for number, step in enumerate(steps, 1) if step.renewed
    ]  # fmt: skip


def _extra(model: nn.Module) -> list[str]:
    """A note for each module with extra state that no ``.kogata`` file holds, such as objects that would have to be pickled."""
    return [
        f"the extra state (get_extra_state) of {path or 'the model'} is not in the file: {reason}. Set it on a model before "
        "you load the file into it."
        for path, reason in extra_states(model)[1].items()
    ]


def _whole(sample: Any, inputs: Any) -> list[str]:
    """A note where costs and latencies are of more than one sample."""
    if sample is not inputs or length(inputs) == 1:
        return []
    return [
        "Multiply-accumulates and latencies are those of the whole first calibration batch: no single sample of it could be "
        "taken along the first axis of its tensors."
    ]


def _left(job: Job) -> list[str]:
    """What the ledger says was not done, and what no method can take over, each reason once, with its sites."""
    noted: dict[str, dict[str, str]] = {}
    for row in job.ledger:
        if row.note:
            noted.setdefault(row.method, {})[row.site] = row.note
    found = [
        f"{method} left {names} as {'they were' if ', ' in names else 'it was'}: {note}."
        for method, notes in noted.items() for note, names in by_reason(notes, most=len(notes)).items()
    ]  # fmt: skip
    alone = left_alone(job.model)
    return found + [f"No method changed {names}: {note}." for note, names in by_reason(alone, most=len(alone)).items()]

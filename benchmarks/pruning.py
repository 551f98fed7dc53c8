"""Every pruning criterion on two nets: error against sparsity, with one small budget of training for each.

Settings of the criteria were chosen on another data set, Fashion-MNIST. All start from the same dense net, prune every layer to
the same sparsity, and use the same number of training batches with the original as teacher. Criteria that learn the mask spend
these on learning it (ADMM one half, and the other on retraining, its second phase); the others prune first and spend them on
recovery.
Errors are on the 10,000 test images, of the model reloaded from its file. The first batch of the calibration data gives the
loss before recovery.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/pruning/`` to measure again. Arguments name
the only criteria to run, so that several can run side by side. The picture is ``docs/pruning.svg``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from benchmarks import harness
from benchmarks.harness import Row
from kogata.calibration.prepare import prepare
from kogata.calibration.probe import Probe
from kogata.forms import Role
from kogata.job import Job, Task
from kogata.methods import METHODS, Recover
from kogata.methods.base.method import Method
from kogata.methods.base.trained import TrainingMethod
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.recipes.recipe import parse
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.system.atomic import writing
from kogata.tasks.batches import Batches
from kogata.tasks.taskfile import open_task

MINUTES = 30
SEED = 0
HERE = Path(__file__).parent
RUNS = harness.runs("pruning")
PICTURE = HERE.parent / "docs" / "pruning.svg"
SPARSITIES = (0.8, 0.9, 0.95)
TASKS = ("mnist-lenet5", "cifar-resnet20-small")
IMAGES = 30_000  # number of training images used in each epoch
WHOLE = Recover(epochs=2, learning_rate=2e-3)
HALF = Recover(epochs=1, learning_rate=2e-3)
BUDGET: Mapping[str, tuple[Recover, Recover | None]] = {
    "movement": (WHOLE, None),
    "admm": (HALF, HALF),
}  # training with the mask learnt, and training after it
CRITERIA = tuple(
    method
    for method in METHODS
    if issubclass(method, WeightMethod | TrainingMethod) and Role.VALUES in method.ABOUT.leaves
    and dataclasses.is_dataclass(method) and "sparsity" in {field.name for field in dataclasses.fields(method)}
)  # fmt: skip
BETTER = ("sparsegpt", "obs", "movement")  # criteria that must not be worse than magnitude
COLOURS = ("#444444", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
WIDTH, HEIGHT, LEFT, TOP = 300, 220, 50, 40  # size and margins of one plot of the picture


@dataclass(frozen=True)
class Point:
    """Test error in percent after all training; for one-shot criteria also error and calibration loss before recovery."""

    error: float
    error_before: float | None = None
    loss_before: float | None = None


def method(criterion: type[Method], sparsity: float) -> tuple[Method, Recover | None]:
    """A criterion at a sparsity, and the recovery after it."""
    name = criterion.ABOUT.name
    training, rest = BUDGET.get(name, (None, WHOLE))
    step = {"method": name, "sparsity": sparsity} | ({"recover": training.settings()} if training else {})
    return parse(yaml.safe_dump({"steps": [step]}), name).method, rest


def small(task: Task) -> Task:
    """The task with fewer training images."""
    batches = task.train
    if not isinstance(batches, Batches):
        raise TypeError(f"{task.name}: expected batches in memory, found {type(batches).__name__}")
    return dataclasses.replace(
        task, train=dataclasses.replace(batches, inputs=batches.inputs[:IMAGES], targets=batches.targets[:IMAGES])
    )


def measured(task: str, criterion: type[Method], sparsity: float) -> Point:
    """The figures of one run, measured unless they are stored already."""
    path = RUNS / f"{task}-{criterion.ABOUT.name}-{sparsity}.json"
    if path.exists():
        return Point(**json.loads(path.read_text(encoding="utf-8")))
    model, opened = open_task(task, SEED, None)
    job, (prune, recover) = prepare(model, small(opened), seed=SEED), method(criterion, sparsity)
    pruned = prune.apply(job)
    error = _error(pruned if recover is None else recover.apply(pruned))
    point = Point(error) if criterion.ABOUT.name in BUDGET else Point(error, _error(pruned), Probe(pruned).base)
    with writing(path) as file:
        file.write(json.dumps(asdict(point)).encode())
    return point


def _error(job: Job) -> float:
    evaluate = job.task.evaluate
    if evaluate is None:
        raise TypeError(f"{job.task.name}: it has no evaluate")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.kogata"
        save(job.model, path)
        loaded = load(path, into=surgery.clone(job.reference, share=False))
    return round(100 - evaluate(loaded), 6)


def drawn(points: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """The picture as SVG: one plot for each task with errors on a log scale; dashed lines are before recovery."""
    names = list(points[TASKS[0]])
    colours = dict(zip(names, COLOURS, strict=False))
    wide, high = len(points) * (WIDTH + LEFT) + 20, HEIGHT + TOP + 50 + 18 * math.ceil(len(names) / 5)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="11">',
        f'<rect width="{wide}" height="{high}" fill="#ffffff"/>',
    ]
    for i, (task, curves) in enumerate(points.items()):
        parts += _plot(LEFT + i * (WIDTH + LEFT), task, curves, colours)
    for i, name in enumerate(names):
        x, y = LEFT + (i % 5) * 125, TOP + HEIGHT + 55 + 18 * (i // 5)
        parts.append(
            f'<path d="M{x} {y - 4}h20" stroke="{colours[name]}" stroke-width="2"/><text x="{x + 25}" y="{y}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot(left: float, task: str, curves: Mapping[str, Sequence[Point]], colours: Mapping[str, str]) -> list[str]:
    """One task: axes, then each criterion's line."""
    errors = [point.error for line in curves.values() for point in line]
    low, top = math.log10(min(errors) * 0.9), 2.0

    def place(column: int, error: float) -> str:
        y = TOP + HEIGHT * (top - math.log10(max(error, 1e-3))) / (top - low)
        return f"{left + WIDTH * column / (len(SPARSITIES) - 1):.1f} {y:.1f}"

    middle = left + WIDTH / 2
    parts = [
        f'<text x="{middle}" y="{TOP - 15}" text-anchor="middle" font-size="13">{task}: test error, %</text>',
        f'<text x="{middle}" y="{TOP + HEIGHT + 32}" text-anchor="middle">sparsity (dashed: before recovery)</text>',
    ]
    for column, sparsity in enumerate(SPARSITIES):
        x = left + WIDTH * column / (len(SPARSITIES) - 1)
        parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{sparsity}</text>')
    for tick in (tick for tick in (5, 10, 15, 20, 30, 50, 100) if math.log10(tick) >= low):
        x, y = place(0, tick).split()
        parts.append(
            f'<path d="M{x} {y}h{WIDTH}" stroke="#dddddd"/><text x="{left - 6}" y="{y}" text-anchor="end">{tick}</text>'
        )
    for name, line in curves.items():
        before = [(i, point.error_before) for i, point in enumerate(line) if point.error_before is not None]
        for dash, values in (("none", [(i, point.error) for i, point in enumerate(line)]), ("3 4", before)):
            path = " L".join(place(i, error) for i, error in values)
            if path:
                parts.append(
                    f'<path d="M{path}" fill="none" stroke="{colours[name]}" stroke-width="2" stroke-dasharray="{dash}"/>'
                )
    return parts


def rows_of(task: str, curves: Mapping[str, Sequence[Point]]) -> list[Row]:
    """The rows of the dense net and of each criterion at each sparsity; the better criteria have magnitude's error as bar."""
    model, opened = open_task(task, SEED, None)
    rows = [Row(task, "test error, dense", _error(prepare(model, opened)), "%")]
    for name, line in curves.items():
        for i, (sparsity, point) in enumerate(zip(SPARSITIES, line, strict=True)):
            bar, direction = (curves["magnitude"][i].error, "<=") if name in BETTER else (None, None)
            case = f"{task}, {name}"
            rows.append(
                Row(
                    case,
                    f"test error at {sparsity}",
                    point.error,
                    "%",
                    bar,
                    direction,
                    "no worse than magnitude" if bar else "",
                )
            )
            if point.error_before is not None and point.loss_before is not None:
                before = curves["magnitude"][i].loss_before if name in BETTER else None
                rows += [
                    Row(case, f"test error at {sparsity}, before recovery", point.error_before, "%"),
                    Row(
                        case, f"calibration loss at {sparsity}, before recovery", point.loss_before, "", before,
                        "<=" if before else None, "no worse than magnitude" if before else "",
                    ),
                ]  # fmt: skip
    return rows


def main() -> int:
    """Run every criterion, or only those named as arguments."""
    if len(sys.argv) > 1:
        for criterion in (criterion for criterion in CRITERIA if criterion.ABOUT.name in sys.argv[1:]):
            for task in TASKS:
                for sparsity in SPARSITIES:
                    measured(task, criterion, sparsity)
        return 0
    points = {
        task: {c.ABOUT.name: [measured(task, c, sparsity) for sparsity in SPARSITIES] for c in CRITERIA} for task in TASKS
    }
    PICTURE.write_text(drawn(points), encoding="utf-8")
    return harness.run("pruning", [row for task in TASKS for row in rows_of(task, points[task])], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

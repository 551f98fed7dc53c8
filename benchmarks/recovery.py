"""Recovery with a teacher: a net pruned, quantized or factorized, then retrained by labels, soft targets, or features too.

After each step the net is trained for three epochs on 20,000 training images, on the same batches in all cases, with the
original as teacher. Scores are those of the model reloaded from its file, on the 10,000 test images.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/recovery/`` to measure again. Arguments name the
only steps to run (pruned, quantized, factorized), so that several can run side by side.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Row
from kogata.flow import compress
from kogata.job import Task
from kogata.methods import SVD, MagnitudePruning, Recover, RoundToNearest
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.system.atomic import writing
from kogata.tasks.batches import Batches
from kogata.tasks.taskfile import open_task
from kogata.training.terms import Hints, Labels, SoftTargets, SumOfTerms, Term

MINUTES = 20
SEED = 0
IMAGES = 20_000
TASK = "cifar-resnet20-small"
RUNS = harness.runs("recovery")
STAGES = ("5", "8", "11")  # the last blocks of the stages
STEPS: Mapping[str, Method] = {
    "pruned": MagnitudePruning(sparsity=0.9),
    "quantized": RoundToNearest(bits=2),
    "factorized": SVD(rank=0.25),
}
SOFT = (Labels(weight=0.1), SoftTargets(weight=0.9, temperature=1.5))  # as in ``distillation``
TERMS: Mapping[str, Term | None] = {
    "nothing": None,
    "labels": Labels(),
    "soft targets": SumOfTerms(terms=SOFT),
    "features": SumOfTerms(terms=(*SOFT, Hints(student=STAGES, teacher=STAGES))),
}


def small(task: Task) -> Task:
    """The task with fewer training images, without augmentation."""
    batches = task.train
    if not isinstance(batches, Batches):
        raise TypeError(f"{task.name}: expected batches in memory, found {type(batches).__name__}")
    inputs, targets = batches.inputs[:IMAGES], batches.targets[:IMAGES]
    return dataclasses.replace(task, train=dataclasses.replace(batches, inputs=inputs, targets=targets, shift=0, mirror=False))


def measured(step: str, name: str) -> tuple[float, float]:
    """Scores in percent of the original and of one compressed net, measured unless they are stored already."""
    path = RUNS / f"{step}-{name.replace(' ', '-')}.json"
    if path.exists():
        dense, ours = json.loads(path.read_text(encoding="utf-8"))
        return dense, ours
    model, task = open_task(TASK, SEED, None)
    term, method = TERMS[name], STEPS[step]
    if term is not None:
        method = chain(method, Recover(epochs=3, learning_rate=2e-3, term=term))
    with tempfile.TemporaryDirectory() as folder:
        report = compress(model, small(task), method, output=Path(folder) / "run", seed=SEED, engine=None).report
    if report.dense.score is None or report.compressed.score is None:
        raise TypeError(f"{task.name}: it has no evaluate")
    scores = report.dense.score, report.compressed.score
    with writing(path) as file:
        file.write(json.dumps(scores).encode())
    return scores


def rows() -> list[Row]:
    """The rows of the original and of each step before and after each recovery; distillation must be better than labels."""
    found = [Row(TASK, "score", measured("pruned", "nothing")[0], "%")]
    for step in STEPS:
        labels = measured(step, "labels")[1]
        for name in TERMS:
            taught = name in ("soft targets", "features")
            bar, direction = (labels, ">=") if taught else (None, None)
            found.append(
                Row(step, f"score after {name}", measured(step, name)[1], "%", bar, direction, "labels alone" if taught else "")
            )
    return found


def main() -> int:
    """Run everything, or only the steps named as arguments."""
    for step in sys.argv[1:]:
        for name in TERMS:
            measured(step, name)
    return 0 if sys.argv[1:] else harness.run("recovery", rows(), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

"""Distillation of LeNet-5 on Fashion-MNIST into a small student without data, with little data, or with all of it.

Every student, a LeNet with 6 and 16 channels, starts from the same random weights and learns from the teacher's outputs (KL at
temperature 4) in 1,200 steps of 128 inputs: the 60,000 training images; 500 of them, as they are or mixed with each other
(mixup); images synthesized from the teacher alone, such that its softened outputs follow its similarities of classes; or
Gaussian noise. No student sees a label. Scores are on the 10,000 test images, of the model reloaded from its file.

Finished cases are not repeated: delete ``runs/data_free/`` to measure again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.job import Task
from kogata.measure import compare
from kogata.methods import Recover
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.system.atomic import writing
from kogata.tasks.batches import Batches
from kogata.tasks.made import Mixup, Noise, Synthesis, synthesized
from kogata.tasks.taskfile import open_task
from kogata.training.loop import fit

MINUTES = 8
SEED = 0
RUNS = harness.runs("data_free")
BATCH = 128
STEPS, EPOCHS = 1200, 4
FEW = 500
LEARN = Recover(epochs=EPOCHS, learning_rate=2e-3, distill=1.0)
BLACK, WHITE = -0.8102, 2.0227  # extreme values of the normalized images
DRAWN = 24  # number of synthesized batches
SYNTHESIS = Synthesis(steps=150, learning_rate=0.1, temperature=4.0, smoothness=0.5, bounds=(BLACK, WHITE))
CASES = ("all data", f"{FEW} images", f"{FEW} images, mixed", "no data, drawn from the teacher", "no data, noise")


class Repeated:
    """Batches, repeated or cut short, so that an epoch has a given number of steps."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        return STEPS // EPOCHS

    def __iter__(self) -> Any:
        """Yield one pass."""
        done = 0
        while done < len(self):
            for batch in self.batches:
                if done == len(self):
                    return
                yield batch
                done += 1


def small_lenet() -> nn.Sequential:
    """The student: images ``[N, 1, 28, 28]`` to class scores ``[N, 10]``."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def data_of(case: str, teacher: nn.Module, task: Task) -> Iterable[Any]:
    """The training batches of a case."""
    batches = task.train
    assert isinstance(batches, Batches)
    few = Batches(batches.inputs[:FEW], batches.targets[:FEW], BATCH, shuffle=True)
    match case:
        case "all data":
            return replace(batches, batch_size=BATCH)
        case "no data, noise":
            return Noise(teacher=teacher, shape=(BATCH, 1, 28, 28), count=STEPS // EPOCHS)
        case "no data, drawn from the teacher":
            return synthesized(teacher, (BATCH, 1, 28, 28), DRAWN, SYNTHESIS, seed=SEED)
        case _:
            return Mixup(batches=few, teacher=teacher) if case.endswith("mixed") else few


def rows_of(case: str) -> list[Row]:
    """The figures of one case, measured unless they are stored already."""
    kept = RUNS / f"{case.replace(',', '').replace(' ', '-')}.json"
    if not kept.exists():
        teacher, task = open_task("fashion-lenet5", SEED, None)
        student, started = small_lenet(), time.perf_counter()
        task = replace(task, train=Repeated(data_of(case, teacher, task)), loss=None)
        making = time.perf_counter() - started
        fit(student, task, LEARN.training, LEARN.objective(task, teacher), seed=SEED, what=case)
        path = kept.with_suffix(".kogata")
        save(student.eval(), path)
        loaded = load(path, into=small_lenet())
        before, after = compare.score(task, teacher), compare.score(task, loaded)
        assert before is not None
        assert after is not None
        rows = [
            Row(case, "test score", after, "%", note=f"teacher {before:.2f} %"),
            Row(case, "points behind the teacher", round(before - after, 6), "%"),
            Row(case, "time to make the data", making, "s"),
        ]
        with writing(kept) as file:
            file.write(json.dumps([asdict(row) for row in rows]).encode())
    return [Row(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]


def main() -> int:
    """Run all cases."""
    RUNS.mkdir(parents=True, exist_ok=True)
    found = {case: rows_of(case) for case in CASES}
    score = {case: rows[0].value for case, rows in found.items()}
    few, mixed, drawn, noise = (score[case] for case in CASES[1:])
    rows = [row for rows in found.values() for row in rows]
    rows.append(Row("no data", "drawn from the teacher over noise", drawn - noise, "points", 0.0, ">="))
    rows.append(Row(f"{FEW} images", "mixed over as they are", mixed - few, "points", 0.0, ">="))
    return harness.run("data_free", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

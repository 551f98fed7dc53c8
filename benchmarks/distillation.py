"""Distillation on CIFAR-10: students 3, 10 and 36 times smaller than ResNet-20, with each term and with labels alone.

All students train on the first 10,000 images without augmentation, so one cache holds the teacher's outputs for all of them. At
10x each term is compared with labels alone; at 3x and 36x only the best term is; all with three seeds. The best term is
selected on 5,000 other training images, which the teacher has seen and no student has. Scores are those of the student reloaded
from its file, on the 10,000 test images; latencies of teacher and student are measured alternately in ONNX Runtime.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/distillation/`` to measure again. Arguments name
the only cases to run, such as ``10x-hints``, so that several can run side by side; the first one makes the cache.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.engines import DEFAULT_ENGINE
from kogata.flow import compress
from kogata.job import Task
from kogata.methods import Recover
from kogata.methods.base.compose import chain
from kogata.methods.base.method import Method
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.system.atomic import writing
from kogata.tasks.batches import Batches
from kogata.tasks.builtin import accuracy
from kogata.tasks.networks import cifar_resnet
from kogata.tasks.taskfile import open_task
from kogata.training.teachers.cache import make
from kogata.training.terms import (
    AttentionTransfer,
    Contrastive,
    Hints,
    Labels,
    LogitRegression,
    Regression,
    Relational,
    Review,
    SelectedNeurons,
    Similarity,
    SoftTargets,
    SumOfTerms,
    Term,
)

MINUTES = 60
SEEDS = (0, 1, 2)
IMAGES, HELD_OUT, BATCH = 10_000, 5_000, 64
EPOCHS = 8
RATE = 4e-3
RUNS = harness.runs("distillation")
CACHE = RUNS / "teacher"
STAGES = ("5", "8", "11")  # the last blocks of the teacher's stages
POOLED = ("13",)
SOFT = (Labels(weight=0.1), SoftTargets(weight=0.9, temperature=1.5))  # best of five on held-out images, with one seed
BAR = 1.0  # percentage points


@dataclass(frozen=True)
class Student:
    """A residual network: depth, width factor, the last block of each stage, and the layer of pooled features."""

    depth: int
    width: float
    stages: tuple[str, ...]
    pooled: tuple[str, ...]


STUDENTS: Mapping[str, Student] = {
    "3x": Student(8, 1.0, ("3", "4", "5"), ("7",)),
    "10x": Student(14, 0.375, ("4", "6", "8"), ("10",)),
    "36x": Student(8, 0.3125, ("3", "4", "5"), ("7",)),
}
TERMS = (
    "none", "soft-targets", "logit-regression", "regression", "hints", "two-stages", "attention-transfer", "selected-neurons",
    "relational", "similarity", "contrastive", "review",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Scores in percent, bytes of the files, parameters, and milliseconds where they were measured."""

    teacher: float
    student: float
    held_out: float
    teacher_bytes: int
    student_bytes: int
    parameters: int
    teacher_ms: float | None
    student_ms: float | None


def method(name: str, student: Student) -> Method:
    """The training of a case. Terms on layers are added to labels, with about the weights of their papers."""
    stages, pooled = student.stages, student.pooled
    terms: Mapping[str, Term] = {
        "none": Labels(),
        "soft-targets": SumOfTerms(terms=SOFT),
        "logit-regression": SumOfTerms(terms=(Labels(), LogitRegression(weight=0.1))),
        "regression": SumOfTerms(terms=(Labels(), Regression(weight=10.0))),
        "hints": SumOfTerms(terms=(Labels(), Hints(weight=10.0, student=stages, teacher=STAGES))),
        "attention-transfer": SumOfTerms(terms=(Labels(), AttentionTransfer(weight=10.0, student=stages, teacher=STAGES))),
        "selected-neurons": SumOfTerms(terms=(Labels(), SelectedNeurons(student=pooled, teacher=POOLED))),
        "relational": SumOfTerms(terms=(Labels(), Relational(student=pooled, teacher=POOLED))),
        "similarity": SumOfTerms(terms=(Labels(), Similarity(weight=3000.0, student=pooled, teacher=POOLED))),
        "contrastive": SumOfTerms(terms=(Labels(), Contrastive(weight=0.8, student=pooled, teacher=POOLED))),
        "review": SumOfTerms(terms=(Labels(), Review(weight=5.0, width=16, student=stages, teacher=STAGES))),
    }

    def recover(epochs: int, term: Term) -> Recover:
        return Recover(epochs=epochs, learning_rate=RATE, weight_decay=0.05, term=term, cache=str(CACHE))

    if name == "two-stages":  # FitNets: hints up to the middle, then soft targets, in as many epochs
        middle = Hints(student=student.stages[1:2], teacher=STAGES[1:2])
        return chain(recover(EPOCHS // 4, middle), recover(EPOCHS - EPOCHS // 4, SumOfTerms(terms=SOFT)))
    return recover(EPOCHS, terms[name])


@cache
def opened() -> tuple[nn.Module, Task, Batches]:
    """The teacher, its task with fewer images and no augmentation, and held-out images; the cache exists afterwards."""
    teacher, task = open_task("cifar-resnet20", 0, None)
    batches = task.train
    if not isinstance(batches, Batches):
        raise TypeError(f"{task.name}: expected batches in memory, found {type(batches).__name__}")
    inputs, targets = batches.inputs[:IMAGES], batches.targets[:IMAGES]
    fixed = dataclasses.replace(batches, inputs=inputs, targets=targets, batch_size=BATCH, shift=0, mirror=False)
    others = slice(IMAGES, IMAGES + HELD_OUT)
    held_out = dataclasses.replace(fixed, inputs=batches.inputs[others], targets=batches.targets[others], shuffle=False)
    if not (CACHE / "header.json").exists():
        make(CACHE, teacher, fixed, (*STAGES, *POOLED))
    return teacher, dataclasses.replace(task, train=fixed), held_out


def measured(size: str, name: str, seed: int) -> Figures:
    """The figures of one student, measured unless they are stored already."""
    path = RUNS / f"{size}-{name}-{seed}.json"
    if path.exists():
        return Figures(**json.loads(path.read_text(encoding="utf-8")))
    teacher, task, others = opened()
    plan = STUDENTS[size]
    torch.manual_seed(seed)
    student = cifar_resnet(plan.depth, plan.width)
    engine = DEFAULT_ENGINE if (name, seed) == ("none", 0) else None  # time depends on the network, not on what it learnt
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        report = compress(student, task, method(name, plan), teacher=teacher, output=output, seed=seed, engine=engine).report
        held_out = accuracy(others, load(Folder(output).model, into=student))
    dense, ours = report.dense, report.compressed
    if dense.score is None or ours.score is None:
        raise TypeError(f"{task.name}: it has no evaluate")
    figures = Figures(
        teacher=dense.score, student=ours.score, held_out=held_out, teacher_bytes=dense.bytes, student_bytes=ours.bytes,
        parameters=ours.parameters, teacher_ms=dense.latency_ms.p50 if dense.latency_ms else None,
        student_ms=ours.latency_ms.p50 if ours.latency_ms else None,
    )  # fmt: skip
    with writing(path) as file:
        file.write(json.dumps(asdict(figures)).encode())
    return figures


def mean(size: str, name: str) -> float:
    """The mean score over the seeds."""
    return statistics.fmean(measured(size, name, seed).student for seed in SEEDS)


def best_term() -> str:
    """The term with the best mean at 10x on the held-out images."""
    return max(
        (name for name in TERMS if name != "none"),
        key=lambda name: statistics.fmean(measured("10x", name, seed).held_out for seed in SEEDS),
    )


def rows() -> list[Row]:
    """The teacher; every term at 10x; the best at the other sizes; sizes and times."""
    scores = {name: mean("10x", name) for name in TERMS}
    best = best_term()
    found = [Row("ResNet-20", "score of the teacher", measured("10x", "none", 0).teacher, "%")]
    for name, score in scores.items():
        bar, direction = (scores["none"] + BAR, ">=") if name == best else (None, None)
        note = "best on held-out images; a point more than labels alone" if name == best else ""
        found.append(Row(f"10x, {name}", "score, mean of 3 seeds", score, "%", bar, direction, note))
    for size in ("3x", "36x"):
        found += [Row(f"{size}, {name}", "score, mean of 3 seeds", mean(size, name), "%") for name in ("none", best)]
    for size in STUDENTS:
        figures = measured(size, "none", 0)
        found += [
            Row(f"{size}, none", "parameters", figures.parameters, ""),
            Row(f"{size}, none", "file, teacher over student", figures.teacher_bytes / figures.student_bytes, "x"),
        ]
        if figures.teacher_ms is not None and figures.student_ms is not None:
            found.append(Row(f"{size}, none", "speed in ONNX Runtime", figures.teacher_ms / figures.student_ms, "x"))
    return found


def main() -> int:
    """Run everything, or only the cases named as arguments."""
    for case in sys.argv[1:]:
        size, _, name = case.partition("-")
        for seed in SEEDS:
            measured(size, name, seed)
    return 0 if sys.argv[1:] else harness.run("distillation", rows(), SEEDS)


if __name__ == "__main__":
    raise SystemExit(main())

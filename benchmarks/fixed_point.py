"""Fixed-point training from scratch: 16-bit numbers, rounded stochastically or to nearest, against floating point.

LeNet-300-100 is trained on Fashion-MNIST from the same random weights, with the same epochs and learning rate: in floating
point, and in numbers with 6 integer and 10 fraction bits under both roundings (Gupta et al. 2015, 1502.02551). Test errors are
those of the model reloaded from its file, on 10,000 images; the files hold the 16-bit numbers themselves.

The number format, the epochs and a loss scale equal to the batch size were chosen on 10,000 held-out training images.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/fixed_point/`` to measure again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.flow import compress
from kogata.methods import FixedPoint, Recover
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.tasks.taskfile import open_task

MINUTES = 12
SEEDS = (0, 1, 2)
TASK = "fashion-lenet300"
RUNS = harness.runs("fixed_point")
TRAINING = Recover(epochs=8, learning_rate=1e-3, distill=0.0)
STALLED = 1.0  # points of error above floating point from which a rounding counts as failed

METHODS: Mapping[str, Method] = {
    "float32": TRAINING,
    "16 bits, stochastic": FixedPoint(integer=6, fraction=10, loss_scale=128.0, recover=TRAINING),
    "16 bits, nearest": FixedPoint(
        integer=6,
        fraction=10,
        rounding="nearest",
        loss_scale=128.0,
        recover=TRAINING,
    ),
}


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """The same network with random weights."""
    torch.manual_seed(seed)
    fresh = surgery.clone(model, share=False)
    for module in fresh.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return fresh


def trained(name: str, seed: int) -> Report:
    """The report of one run, trained unless there is a report already."""
    folder = Folder(RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}")
    if folder.finished:
        return Report.load(folder.report)
    model, task = open_task(TASK, 0, None)  # the data and the network; its weights are not used
    fresh, resume = untrained(model, seed), folder.path.exists()
    return compress(fresh, task, METHODS[name], output=folder.path, seed=seed, engine=None, resume=resume).report


def main() -> int:
    """Run every rounding with every seed."""
    reports = {name: [trained(name, seed) for seed in SEEDS] for name in METHODS}
    errors = {
        name: round(statistics.mean(100 - (run.compressed.score or 0) for run in runs), 6) for name, runs in reports.items()
    }
    bars: Mapping[str, tuple[float, Literal["<=", ">="], str]] = {
        "16 bits, stochastic": (round(errors["float32"] + 0.3, 6), "<=", "within 0.3 points of floating point"),
        "16 bits, nearest": (round(errors["float32"] + STALLED, 6), ">=", "where rounding to nearest fails"),
    }
    rows: list[Row] = []
    for name, runs in reports.items():
        rows += [
            Row(name, "test error", errors[name], "%", *bars.get(name, (None, None, ""))),
            Row(name, "file", statistics.mean(run.compressed.bytes for run in runs), "bytes"),
        ]
    return harness.run("fixed_point", rows, SEEDS)


if __name__ == "__main__":
    raise SystemExit(main())

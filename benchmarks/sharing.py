"""Weight sharing on MNIST: soft weight sharing and entropy-constrained quantization, each against k-means in the same recipe.

Each case runs ``compress`` with ``benchmarks/recipes/TASK-CASE.yaml``; the naive counterpart is the same recipe with
k-means in the place of the sharing step. Bytes are those of the file on disk, graph and header included, the rate is
relative to the dense model as a safetensors file, and errors are those of the reloaded model in ONNX Runtime, on the 10,000
test images.

An interrupted run resumes, and a finished one is not repeated: delete ``runs/sharing/`` to measure again. Arguments name
the only cases to run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Row
from kogata.flow import compress
from kogata.recipes.recipe import open_recipe
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.tasks.taskfile import open_task

MINUTES = 40
SEED = 0
HERE = Path(__file__).parent
RUNS = harness.runs("sharing")


@dataclass(frozen=True)
class Case:
    """A recipe, the compression rate that its file must reach, and the error in percent that it must not pass."""

    task: str
    recipe: str
    rate: float | None
    error: float | None
    paper: str = ""

    @property
    def name(self) -> str:
        """The name of the task and the recipe."""
        return f"{self.task}, {self.recipe}"


CASES = (
    Case("mnist-lenet300", "soft", 64, 1.94, "Ullrich et al. 2017: 64x at 1.94 %"),
    Case("mnist-lenet300", "soft-twin", None, None, "k-means in its place"),
    Case("mnist-lenet5", "soft", 162, 0.97, "Ullrich et al. 2017: 162x at 0.97 %"),
    Case("mnist-lenet5", "soft-twin", None, None, "k-means in its place"),
    Case("mnist-lenet5", "ecsq", 51, 0.8, "Choi et al. 2017: 51x at 0.8 %"),
    Case("mnist-lenet5", "ecsq-twin", None, None, "k-means in its place"),
)


def compressed(case: Case) -> Report:
    """The report of one run, which is run unless there is a report already."""
    folder = Folder(RUNS / f"{case.task}-{case.recipe}")
    if folder.finished:
        return Report.load(folder.report)
    model, task = open_task(case.task, SEED, None)
    recipe = open_recipe(str(HERE / "recipes" / f"{case.task}-{case.recipe}.yaml"))
    return compress(model, task, recipe, output=folder.path, seed=SEED, resume=folder.path.exists()).report


def rows_of(case: Case) -> list[Row]:
    """The rows of rate, error and bytes."""
    report = compressed(case)
    error = round(100 - (report.compressed.score or 0), 6)
    dense = round(100 - (report.dense.score or 0), 6)
    return [
        Row(case.name, "compression rate α", report.alpha, "x", case.rate, ">=" if case.rate else None, case.paper),
        Row(case.name, "test error", error, "%", case.error, "<=" if case.error else None, f"dense {dense:g} %"),
        Row(case.name, "file", report.compressed.bytes, "bytes"),
    ]


def main() -> int:
    """Run all cases, or those named as arguments."""
    if len(sys.argv) > 1:
        for case in CASES:
            if case.name in sys.argv[1:]:
                print(case.name, compressed(case).compressed)
        return 0
    return harness.run("sharing", [row for case in CASES for row in rows_of(case)], [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

"""Deep compression of the LeNets: file bytes and errors on MNIST and Fashion-MNIST, over three seeds.

Each task and seed runs ``compress`` with ``benchmarks/recipes/TASK.yaml`` in ``runs/deep_compression/``. Bytes are those of the
file on disk, graph and header included; errors are those of the model reloaded from it, in ONNX Runtime, on the 10,000 test
images. An interrupted run resumes, and a finished one is not repeated: delete the folder to measure again. The file of
the first seed is kept as ``benchmarks/artifacts/TASK.kogata``. The bytes "in Huffman coding" are the same planes in
the coding of the paper: relative indices and Huffman codes.

The recipes for Fashion-MNIST were chosen among several on 10,000 images held out of the training set; those for MNIST start
from settings found on 5,000 held-out images, at a higher sparsity. No recipe was selected by its test error.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks import harness
from benchmarks.harness import Row
from kogata.coding.bitmap import Bitmap
from kogata.coding.huffman import Huffman
from kogata.coding.packed import Packed
from kogata.coding.relative import Relative
from kogata.flow import compress
from kogata.network import surgery
from kogata.recipes.recipe import open_recipe, parse
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.storage.load import load
from kogata.storage.read import read_file
from kogata.storage.write import pack
from kogata.tasks.taskfile import open_task

MINUTES = 45
SEEDS = (0, 1, 2)
HERE = Path(__file__).parent
RUNS = harness.runs("deep_compression")
HUFFMAN = (Packed(), Bitmap(), Huffman(), Relative((Huffman(),)))


@dataclass(frozen=True)
class Bar:
    """The bars of a task: file bytes, and either an error in percent or a loss in points against its dense model."""

    task: str
    bytes: int
    error: float
    drop: float | None
    paper: str


BARS = (
    Bar("mnist-lenet300", 19_000, 1.64, None, "Deep Compression: 27 kB at 1.58 %"),
    Bar("mnist-lenet5", 22_000, 0.80, None, "Deep Compression: 44 kB at 0.74 %"),
    Bar("fashion-lenet300", 20_000, 10.8, 0.2, "a dense model of 89.4 %, less 0.2 points"),
    Bar("fashion-lenet5", 26_000, 8.8, 0.2, "a dense model of 91.4 %, less 0.2 points"),
)


def compressed(task: str, seed: int) -> tuple[Report, int]:
    """The report of one run, and the bytes of its file in Huffman coding."""
    folder = Folder(RUNS / f"{task}-seed{seed}")
    recipe = open_recipe(str(HERE / "recipes" / f"{task}.yaml"))
    model, opened = open_task(task, seed, None)
    if folder.finished:
        report = Report.load(folder.report)
        if parse(yaml.safe_dump(report.recipe), str(folder.path)) != recipe:
            raise SystemExit(f"{folder.path} holds a run of another recipe: delete it to measure again.")
    else:
        report = compress(model, opened, recipe, output=folder.path, seed=seed, resume=folder.path.exists()).report
    stored = read_file(folder.model)
    loaded = load(folder.model, into=surgery.clone(model))
    return report, len(pack(loaded, stored.graph, HUFFMAN).data)


def rows_of(bar: Bar) -> list[Row]:
    """The rows of one task over three seeds."""
    reports, huffman = zip(*(compressed(bar.task, seed) for seed in SEEDS), strict=True)
    shutil.copy(RUNS / f"{bar.task}-seed{SEEDS[0]}" / "model.kogata", HERE / "artifacts" / f"{bar.task}.kogata")
    sizes = [report.compressed.bytes for report in reports]
    errors = [100 - (report.compressed.score or 0) for report in reports]
    dense = [100 - (report.dense.score or 0) for report in reports]
    # rounded, because errors are counts of 10,000 images and further digits are rounding noise
    losses = [round(error - before, 6) for error, before in zip(errors, dense, strict=True)]
    lost = round(statistics.mean(losses), 6)
    limit = (bar.drop, "<=") if bar.drop is not None else (None, None)
    return [
        Row(bar.task, "file", statistics.mean(sizes), "bytes", bar.bytes, "<=", _spread(sizes)),
        Row(bar.task, "test error", statistics.mean(errors), "%", bar.error, "<=", f"{_spread(errors)}; {bar.paper}"),
        Row(bar.task, "points lost against the dense model", lost, "points", *limit, _spread(losses)),
        Row(bar.task, "test error, dense", statistics.mean(dense), "%", note=_spread(dense)),
        Row(bar.task, "compression rate α", statistics.mean(report.alpha for report in reports), "x"),
        Row(bar.task, "file with Huffman coding", statistics.mean(huffman), "bytes", note=_spread(huffman)),
    ]  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    """The value of each seed, then the standard deviation."""
    return f"seeds: {', '.join(f'{value:.6g}' for value in values)}; s = {statistics.stdev(values):.2g}"


def main() -> int:
    """Run all four tasks."""
    return harness.run("deep_compression", [row for bar in BARS for row in rows_of(bar)], SEEDS)


if __name__ == "__main__":
    raise SystemExit(main())

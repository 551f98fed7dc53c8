"""Structured matrices: time of one layer against dense, and LeNet-300-100 with each structure at equal bytes.

Times are those of y = W x on one thread, measured alternately for all layers of one size and batch: the lowered layer in
PyTorch against the dense layer in MKL. Circulant blocks are compared with the block-diagonal layer with the fewest blocks that
is no slower, which shows what the same time achieves without the structure. ONNX Runtime is timed in the same way.
which says what the time would buy without the structure. ONNX Runtime is timed the same way; a structure that has no cheaper
layer there is a dense layer.

The nets have equal file sizes, set by the numbers that each structure may hold, and the same recovery; the test error is that
of the model reloaded from its file. An interrupted run resumes: delete ``runs/structured/`` to measure again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.engines import EAGER, ONNXRUNTIME, Costs, OnnxRuntime
from kogata.engines.lowering.rules import cheaper
from kogata.flow import compress
from kogata.forms import Dense, Displacement, Fastfood, Form, Product, Role, Tied
from kogata.forms.fastfood import sizes
from kogata.forms.product import MONARCH
from kogata.forms.structured_maps import Circulant, Diagonal
from kogata.measure.latency import interleaved
from kogata.methods import SVD, Recover
from kogata.methods.base.compose import chain, only
from kogata.methods.base.method import Method
from kogata.methods.structured.adaptive_fastfood import AdaptiveFastfood
from kogata.methods.structured.block_circulant import BlockCirculant
from kogata.methods.structured.block_diagonal import BlockDiagonal
from kogata.methods.structured.butterfly import Butterfly
from kogata.methods.structured.kronecker import Kronecker
from kogata.methods.structured.low_displacement import LowDisplacement
from kogata.methods.structured.monarch import Monarch
from kogata.report.data import Report
from kogata.storage.folder import Folder
from kogata.tasks.taskfile import open_task

MINUTES = 12
SEED = 0
RUNS = harness.runs("structured")
SIZES = (1024, 4096, 8192)
BATCHES = (1, 64)
BLOCK = 64
GROUPS = (8, 16, 32, 64, 128)
BARS: Mapping[str, Mapping[int, float]] = {  # speed-up over dense at batch 1
    "circulant": {1024: 4, 4096: 40, 8192: 100},
    f"circulant, blocks of {BLOCK}": {1024: 1.8, 4096: 15, 8192: 20},
}
ENGINE_SIZES = (1024, 4096)  # sizes that are timed in ONNX Runtime
TASK = "mnist-lenet300"
RECOVERY = Recover(epochs=3, learning_rate=2e-3)
HIDDEN = ("fc1", "fc2")  # not the last layer, which has only a thousand numbers


def forms(size: int) -> dict[str, Form]:
    """Square structured matrices of random numbers, as the methods produce them."""
    root = 1 << (size.bit_length() // 2)
    rest, shape = size // root, (size, size)

    def tied(map: Circulant | Diagonal, *base: int) -> Form:
        return Tied(map, Dense(torch.randn(base), Role.MATRIX), shape)

    found = {
        "circulant": tied(Circulant(size, SEED), 1, 1, size),
        f"circulant, blocks of {BLOCK}": tied(Circulant(BLOCK, SEED), size // BLOCK, size // BLOCK, BLOCK),
        "fastfood": Fastfood.of([torch.randn(part) for part in sizes(shape)], SEED, shape),
        "monarch": Product.of(MONARCH, [torch.randn(root, rest, rest, 1), torch.randn(rest, root, 1, root)], shape),
        "low displacement, rank 1": Displacement.of(torch.randn(1, size), torch.randn(1, size), shape),
    }
    return found | {f"{count} groups": tied(Diagonal(count), count, size // count, size // count) for count in GROUPS}


def speed(
    size: int, batch: int, opened: Callable[[nn.Module, Tensor], Callable[[], object]], engine: str, costs: Costs
) -> list[Row]:
    """Speed-ups over the dense layer in one engine."""
    dense, x = nn.Linear(size, size, bias=False).requires_grad_(False), torch.randn(batch, size)
    calls, names = [opened(dense, x)], list[str]()
    for name, form in forms(size).items():
        layer = cheaper(form, dense, costs)
        names.append(name)
        calls.append(opened(dense if layer is None else layer.eval(), x))
    turns = interleaved(calls)
    gains = {name: turns.speedup(0, call) for call, name in enumerate(names, 1)}
    case = f"{engine}, {size} x {size}, batch {batch}"
    rows = [Row(case, "dense", turns.latency(0).p50 * 1000, "µs")]
    for name in [name for name in gains if not name.endswith("groups")]:
        bar = BARS.get(name, {}).get(size) if batch == 1 and engine == "torch" else None
        equal = next((count for count in GROUPS if gains.get(f"{count} groups", 0) >= gains[name]), None)
        note = f"as fast as {equal} groups" if equal else f"faster than {GROUPS[-1]} groups"
        rows.append(
            Row(case, name, gains[name], "x faster", bar, None if bar is None else ">=", note if "circ" in name else "")
        )
    return rows


def in_torch(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A layer as a function that runs it in PyTorch."""

    def call() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return call


def in_onnx_runtime(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """A layer as a function that runs it in ONNX Runtime."""
    session = OnnxRuntime().open_model(nn.Sequential(layer), torch.cat([x, x]))
    return lambda: session(x)


def structures() -> dict[str, tuple[Method, Method]]:
    """For each structure the methods of the two hidden layers, 300 by 784 and 100 by 300, with about 8,600 and 3,100 numbers.

    Where a structure holds fewer numbers, a residual uses the rest.
    """
    return {
        "low rank": (SVD(rank=8), SVD(rank=8)),
        "circulant": (BlockCirculant(residual=7), BlockCirculant(residual=7)),
        "circulant blocks": (BlockCirculant(block=28), BlockCirculant(block=10)),
        "monarch": (Monarch(blocks=7, residual=2), Monarch(blocks=5, residual=3)),
        "butterfly": (Butterfly(factors=4), Butterfly(factors=4, residual=3)),
        "kronecker": (Kronecker(rank=8, residual=1), Kronecker(rank=10)),
        "block-diagonal": (BlockDiagonal(blocks=28), BlockDiagonal(blocks=10)),
        "low displacement": (LowDisplacement(rank=5, residual=1), LowDisplacement(rank=5)),
        "fastfood": (AdaptiveFastfood(residual=5), AdaptiveFastfood(residual=4)),
    }


def accuracy(name: str) -> list[Row]:
    """The rows of bytes and test error of one structure."""
    kept = Folder(RUNS / name.replace(" ", "-"))
    if kept.finished:
        report = Report.load(kept.report)
    else:
        model, task = open_task(TASK, SEED, None)
        steps = [only(method, layer) for method, layer in zip(structures()[name], HIDDEN, strict=True)]
        report = compress(
            model, task, chain(*steps, RECOVERY), output=kept.path, seed=SEED, engine=None, resume=kept.path.exists()
        ).report
    return [
        Row(f"{TASK}, {name}", "test error", round(100 - (report.compressed.score or 0), 6), "%"),
        Row(f"{TASK}, {name}", "file", report.compressed.bytes, "bytes"),
    ]


def main() -> int:
    """Run everything; with the argument ``speed`` only the times, which are then printed but not stored."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rows = [row for size in SIZES for batch in BATCHES for row in speed(size, batch, in_torch, "torch", EAGER)]
    for size, batch in itertools.product(ENGINE_SIZES, BATCHES):
        rows += speed(size, batch, in_onnx_runtime, "onnxruntime", ONNXRUNTIME)
    if sys.argv[1:] != ["speed"]:
        rows += [row for name in structures() for row in accuracy(name)]
    return harness.run("structured", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

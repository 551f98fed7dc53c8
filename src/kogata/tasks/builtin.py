"""The built-in tasks: small networks on public images, with the dense models they start from."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kogata.atomic import writing
from kogata.calibrate import evaluating
from kogata.errors import DataError, UsageError
from kogata.job import Task
from kogata.tasks import networks
from kogata.tasks.batches import Batches
from kogata.tasks.data import Name, cache_folder, load
from kogata.train import Training, fit, task_loss

SHIPPED = Path(__file__).parent / "weights"
CALIBRATION = 1024  # examples
EVALUATION_BATCH = 1000  # examples; only memory depends on it

log = logging.getLogger("kogata")


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[N, ...]`` as the network wants them and labels ``[N]``, for training and for the score."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class BuiltinTask:
    """A network, the data it is for, and how the dense model is trained."""

    name: str
    description: str
    network: Callable[[], nn.Module]
    split: Callable[[Path | None], Split]
    training: Training
    batch_size: int = 128
    shift: int = 0  # pixels by which training images move at random

    def open(self, seed: int, data: Path | None) -> tuple[nn.Module, Task]:
        """Return the trained dense model and the task.

        The LeNets of seed 0 come with Kogata, as this code trained them. Others are trained on first use, which takes up to
        some minutes, then read from the cache folder.

        :param data: folder with the sub-folders ``mnist/`` and ``fashion-mnist/``; None to look where `find` looks.
        :raises DataError: the data is missing or damaged.
        """
        split = self.split(data)
        inputs, labels = split.train
        task = Task(
            name=self.name,
            calibration=Batches(inputs[:CALIBRATION], labels[:CALIBRATION], self.batch_size, shuffle=False),
            train=Batches(inputs, labels, self.batch_size, shuffle=True, shift=self.shift),
            loss=nn.functional.cross_entropy,
            evaluate=partial(accuracy, Batches(*split.test, EVALUATION_BATCH, shuffle=False)),
        )
        with torch.random.fork_rng():  # so that what follows is the same whether the model was trained or read
            torch.manual_seed(seed)
            model = self.network()
            name = self._weights_name(seed)
            weights = cache_folder() / "dense" / name
            if not _read_weights(model, SHIPPED / name) and not _read_weights(model, weights):
                what = f"Training the dense model of {self.name}"
                fit(model, task, self.training, task_loss(task), seed=seed, what=what)
                _write_weights(model, weights)
        return model.eval(), task

    def _weights_name(self, seed: int) -> str:
        settings = [str(self.network()), self.batch_size, self.shift, asdict(self.training)]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.name}-seed{seed}-{digest}.safetensors"


def accuracy(batches: Batches, model: nn.Module) -> float:
    """Return the percentage of examples whose highest score is at the label; the model's mode is left as it was."""
    first = next(iter(model.state_dict().values()), batches.inputs)
    with evaluating(model):
        hits = [model(inputs.to(first.device)).argmax(1).cpu() == labels for inputs, labels in batches]
    return 100 * int(torch.cat(hits).sum()) / len(batches.targets)


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


def _read_weights(model: nn.Module, path: Path) -> bool:
    """Fill the model from the cache; False when the file is not there, or damaged, which is logged."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            intact = (file.metadata() or {}).get("sha256") == _digest(state)
        if intact:
            model.load_state_dict(state)
            return True
    except (OSError, SafetensorError, RuntimeError):
        intact = False
    log.warning("%s is damaged: training the dense model again", path)
    return intact


def _write_weights(model: nn.Module, path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        with writing(path) as file:
            file.write(save(state, metadata={"sha256": _digest(state)}))
    except DataError as error:
        log.warning("%s The dense model is not kept: it will be trained again next time.", error)


def _images(name: Name, mean: float, deviation: float, folder: Path | None) -> Split:
    """Read a set of the MNIST family."""
    images = load(name, folder)

    def prepared(images_NHW: npt.NDArray[np.uint8], labels_N: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        inputs_N1HW = (torch.tensor(images_NHW, dtype=torch.float32).unsqueeze(1) / 255 - mean) / deviation
        return inputs_N1HW, torch.tensor(labels_N, dtype=torch.int64)

    return Split(
        train=prepared(images.train_images_NHW, images.train_labels_N),
        test=prepared(images.test_images_NHW, images.test_labels_N),
    )


def _digits(folder: Path | None) -> Split:
    """Read scikit-learn's digits: 1,437 for training, 360 for the score, stratified."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UsageError("The task digits-mlp needs scikit-learn: pip install 'kogata[digits]'.") from error
    inputs, labels = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(inputs / 16 - 0.5, dtype=torch.float32), torch.tensor(labels)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Split(train=(inputs[train], labels[train]), test=(inputs[test], labels[test]))


_fashion = partial(_images, "fashion-mnist", 0.2860, 0.3530)
_mnist = partial(_images, "mnist", 0.1307, 0.3081)

BUILTIN_TASKS = (
    BuiltinTask(
        name="fashion-lenet300",
        description="LeNet-300-100 on Fashion-MNIST: 10 kinds of clothes, 266,610 parameters",
        network=networks.lenet300,
        split=_fashion,
        training=Training(epochs=15, learning_rate=1e-3),
    ),
    BuiltinTask(
        name="fashion-lenet5",
        description="LeNet-5 on Fashion-MNIST: 10 kinds of clothes, 431,080 parameters",
        network=networks.lenet5,
        split=_fashion,
        training=Training(epochs=14, learning_rate=2e-3, weight_decay=1e-2),
        batch_size=256,
    ),
    BuiltinTask(
        name="mnist-lenet300",
        description="LeNet-300-100 on MNIST: handwritten digits, 266,610 parameters",
        network=networks.lenet300,
        split=_mnist,
        training=Training(epochs=20, learning_rate=2e-3),
        shift=1,
    ),
    BuiltinTask(
        name="mnist-lenet5",
        description="LeNet-5 on MNIST: handwritten digits, 431,080 parameters",
        network=networks.lenet5,
        split=_mnist,
        training=Training(epochs=12, learning_rate=2e-3),
        batch_size=256,
        shift=1,
    ),
    BuiltinTask(
        name="digits-mlp",
        description="A perceptron on scikit-learn's 8×8 digits: 9,610 parameters, trains in a second",
        network=networks.digits_mlp,
        split=_digits,
        training=Training(epochs=20, learning_rate=1e-2),
        batch_size=64,
    ),
)

"""The built-in tasks: small networks on public image data, with trained dense models to start from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.job import Task
from kogata.network.batch import evaluating
from kogata.tasks import networks
from kogata.tasks.batches import Batches, Normalization
from kogata.tasks.data import Name, cache_folder, load, named_folder
from kogata.tasks.images import CIFAR10, load_pictures
from kogata.tasks.kept import keep, read_kept
from kogata.training.loop import Training, fit, task_loss

CHECKOUT = Path(__file__).parents[3]  # the repository's root; has no data/networks/ where Kogata is installed from a wheel
CALIBRATION = 1024  # examples
EVALUATION_BATCH = 250  # examples; activations of this batch nearly fit the processor's caches


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[N, ...]`` and labels ``[N]``, for training and for the score.

    :param normalization: applied to the inputs in each batch; None when they are normalized already.
    :param mirror: augment the training images by mirroring, which suits photographs but not digits.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    normalization: Normalization | None = None
    mirror: bool = False


@dataclass(frozen=True, kw_only=True)
class BuiltinTask:
    """A network, its data, and the training settings of its dense model."""

    name: str
    description: str
    network: Callable[[], nn.Module]
    split: Callable[[Path | None], Split]
    training: Training
    batch_size: int = 128
    shift: int = 0  # largest random shift of training images, in pixels

    def open(self, seed: int, data: Path | None) -> tuple[nn.Module, Task]:
        """Return the trained dense model and the task.

        The dense model is read from the first of `network_folders` that has it. The repository holds those of the LeNets,
        ResNet-20 and the small CIFAR networks for seed 0. Any other is trained on first use, which takes minutes, or hours for
        large networks without a GPU, and is then stored in the cache folder.

        :param seed: seed of the initial weights and of the training.
        :param data: folder with ``mnist/``, ``fashion-mnist/``, ``cifar10/`` and ``networks/``; None for the default places of
            `find`, `load_pictures` and `network_folders`.
        :raises DataError: the data is missing or damaged.
        """
        split = self.split(data)
        inputs, labels = split.train
        batches = partial(Batches, normalization=split.normalization)
        task = Task(
            name=self.name,
            calibration=batches(inputs[:CALIBRATION], labels[:CALIBRATION], self.batch_size, shuffle=False),
            train=batches(inputs, labels, self.batch_size, shuffle=True, shift=self.shift, mirror=split.mirror),
            loss=nn.functional.cross_entropy,
            evaluate=partial(accuracy, batches(*split.test, EVALUATION_BATCH, shuffle=False)),
        )
        with torch.random.fork_rng():  # so that later random numbers do not depend on whether the model was trained or read
            torch.manual_seed(seed)
            model = self.network()
            name = self._weights_name(seed)
            again = "training the dense model again, unless there is another copy"
            copies = (read_kept(folder / name, again) for folder in network_folders(data))
            state = next((copy for copy in copies if copy is not None), None)
            if state is not None:
                model.load_state_dict(state)
            else:
                what = f"Training the dense model of {self.name}"
                fit(model, task, self.training, task_loss(task), seed=seed, what=what)
                state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
                keep(_kept_networks() / name, state, "The dense model is not kept: it will be trained again next time.")
        return model.eval(), task

    def _weights_name(self, seed: int) -> str:
        settings = [str(self.network()), self.batch_size, self.shift, asdict(self.training)]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.name}-seed{seed}-{digest}.safetensors"


def network_folders(data: Path | None) -> list[Path]:
    """Return the folders in which trained dense models are searched, in order.

    These are ``data/networks/`` of the repository, ``networks/`` in ``data`` or else in ``$KOGATA_DATA``, and the cache folder,
    which holds the models that were trained on this machine.
    """
    named = named_folder(data)
    return [CHECKOUT / "data" / "networks", *([named / "networks"] if named else []), _kept_networks()]


def _kept_networks() -> Path:
    return cache_folder() / "dense"


def accuracy(batches: Batches, model: nn.Module) -> float:
    """Return the accuracy in percent: how often the highest class score ``[N, classes]`` is that of the label.

    The model runs in evaluation mode and gets its mode back.

    >>> batches = Batches(torch.eye(4), torch.tensor([0, 1, 2, 0]), batch_size=2, shuffle=False)
    >>> accuracy(batches, nn.Identity())
    75.0
    """
    first = next(iter(model.state_dict().values()), batches.inputs)
    with evaluating(model):
        hits = [model(inputs.to(first.device)).argmax(1).cpu() == labels for inputs, labels in batches]
    return 100 * int(torch.cat(hits).sum()) / len(batches.targets)


def _images(name: Name, mean: float, deviation: float, folder: Path | None) -> Split:
    """Read MNIST or Fashion-MNIST as float32 images ``[N, 1, 28, 28]``."""
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


def _cifar(folder: Path | None) -> Split:
    """Read CIFAR-10, normalized by the mean and deviation of its training images; channels last, to train faster."""
    pictures = load_pictures(CIFAR10, folder)
    return Split(
        train=(pictures.train_images_NCHW.contiguous(memory_format=torch.channels_last), pictures.train_labels_N),
        test=(pictures.test_images_NCHW.contiguous(memory_format=torch.channels_last), pictures.test_labels_N),
        normalization=Normalization(mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616)),
        mirror=True,
    )


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
    BuiltinTask(
        name="cifar-vgg",
        description="VGG-16 with batch normalization on CIFAR-10: 10 kinds of things, 14,724,042 parameters",
        network=networks.cifar_vgg,
        split=_cifar,
        training=Training(epochs=100, learning_rate=1e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-vgg-small",
        description="Six convolutions on CIFAR-10: 288,746 parameters",
        network=networks.cifar_vgg_small,
        split=_cifar,
        training=Training(epochs=25, learning_rate=4e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-resnet20",
        description="ResNet-20 on CIFAR-10: 272,474 parameters",
        network=partial(networks.cifar_resnet, 20),
        split=_cifar,
        training=Training(epochs=24, learning_rate=4e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-resnet20-small",
        description="ResNet-20 of half the width on CIFAR-10: 68,786 parameters",
        network=partial(networks.cifar_resnet, 20, width=0.5),
        split=_cifar,
        training=Training(epochs=16, learning_rate=4e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-resnet56",
        description="ResNet-56 on CIFAR-10: 855,770 parameters",
        network=partial(networks.cifar_resnet, 56),
        split=_cifar,
        training=Training(epochs=100, learning_rate=4e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-nin",
        description="Network in Network on CIFAR-10: 966,986 parameters",
        network=networks.cifar_nin,
        split=_cifar,
        training=Training(epochs=100, learning_rate=1e-3, weight_decay=0.05),
        shift=4,
    ),
    BuiltinTask(
        name="cifar-allcnn",
        description="All-CNN-C on CIFAR-10: 1,369,738 parameters",
        network=networks.cifar_allcnn,
        split=_cifar,
        training=Training(epochs=100, learning_rate=1e-3, weight_decay=0.05),
        shift=4,
    ),
)

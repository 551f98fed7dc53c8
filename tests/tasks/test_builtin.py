"""The built-in tasks: shapes, accuracy, and the cache of dense models."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kogata.calibration.batches import first_batch
from kogata.tasks import builtin
from kogata.tasks.batches import Batches
from kogata.tasks.builtin import BUILTIN_TASKS, BuiltinTask, accuracy
from kogata.tasks.images import Pictures
from kogata.tasks.kept import keep

from .conftest import small_files, write_files


def named(name: str) -> BuiltinTask:
    return next(task for task in BUILTIN_TASKS if task.name == name)


def digits(epochs: int) -> BuiltinTask:
    task = named("digits-mlp")
    return replace(task, training=replace(task.training, epochs=epochs))


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_names_are_unique_and_told():
    assert [task.name for task in BUILTIN_TASKS] == [
        "fashion-lenet300",
        "fashion-lenet5",
        "mnist-lenet300",
        "mnist-lenet5",
        "digits-mlp",
        "cifar-vgg",
        "cifar-vgg-small",
        "cifar-resnet20",
        "cifar-resnet20-small",
        "cifar-resnet56",
        "cifar-nin",
        "cifar-allcnn",
    ]
    assert all(task.description for task in BUILTIN_TASKS)


def test_digits_reach_their_accuracy(places: dict[str, Path]):
    model, task = named("digits-mlp").open(0, None)
    assert not model.training
    assert task.evaluate is not None
    assert task.evaluate(model) > 95


@pytest.mark.parametrize("name", ["mnist-lenet300", "mnist-lenet5", "fashion-lenet300", "fashion-lenet5"])
def test_images_open(name: str, places: dict[str, Path]):
    write_files(places["user"] / name.partition("-lenet")[0].replace("fashion", "fashion-mnist"), small_files(), packed=True)
    builtin_task = named(name)
    one_epoch = replace(builtin_task, training=replace(builtin_task.training, epochs=1))
    model, task = one_epoch.open(0, places["user"])
    inputs, targets = first_batch(model, task)
    count = min(builtin_task.batch_size, 240)
    assert inputs.shape == (count, 1, 28, 28)
    assert targets.dtype == torch.int64
    assert model(inputs).shape == (count, 10)
    assert isinstance(task.train, Batches)
    assert len(task.train.inputs) == 240
    assert task.evaluate is not None
    assert 0 <= task.evaluate(model) <= 100


@pytest.mark.parametrize("name", ["cifar-vgg-small", "cifar-resnet20-small"])
def test_pictures_open(name: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    images_NCHW = torch.randint(256, (240, 3, 32, 32), dtype=torch.uint8)
    labels_N = torch.arange(240) % 10
    monkeypatch.setattr(builtin, "load_pictures", lambda wanted, _: Pictures(images_NCHW, labels_N, images_NCHW, labels_N))
    one_epoch = replace(named(name), training=replace(named(name).training, epochs=1))
    model, task = one_epoch.open(0, None)
    inputs, targets = first_batch(model, task)
    assert model(inputs).shape == (128, 10)
    assert torch.equal(targets, labels_N[:128])
    mean_C, deviation_C = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    expected = (images_NCHW[:128].permute(0, 2, 3, 1) / 255 - mean_C) / deviation_C
    torch.testing.assert_close(inputs.permute(0, 2, 3, 1), expected)
    assert isinstance(task.train, Batches)
    assert (task.train.shift, task.train.mirror, task.train.inputs.dtype) == (4, True, torch.uint8)
    assert task.evaluate is not None
    assert 0 <= task.evaluate(model) <= 100


def test_the_dense_model_is_trained_once(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    trained = []
    fit = builtin.fit
    monkeypatch.setattr(builtin, "fit", lambda *args, **named: trained.append(named["seed"]) or fit(*args, **named))
    first, _ = digits(2).open(0, None)
    again, _ = digits(2).open(0, None)
    assert trained == [0]
    assert same(first, again)
    other, _ = digits(2).open(1, None)
    longer, _ = digits(3).open(0, None)
    assert trained == [0, 1, 0], "another seed and other settings have files of their own"
    assert not same(first, other)
    assert not same(first, longer)


NETWORKS = sorted((builtin.CHECKOUT / "data" / "networks").glob("*.safetensors"))


def test_the_checkout_holds_the_networks_that_its_readers_are_promised():
    assert [path.name.partition("-seed0-")[0] for path in NETWORKS] == [
        "cifar-resnet20",
        "cifar-resnet20-small",
        "cifar-vgg-small",
        "fashion-lenet300",
        "fashion-lenet5",
        "mnist-lenet300",
        "mnist-lenet5",
    ]


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_network_of_the_checkout_is_of_the_task_as_it_is_now(path: Path, places: dict[str, Path]):
    task = named(path.name.partition("-seed0-")[0])
    model = task.network()
    empty = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    opened, _ = replace(task, split=lambda _: builtin.Split(train=empty, test=empty)).open(0, None)
    model.load_state_dict(load_file(path))  # strict: every tensor is there, with its shape
    assert same(model, opened)
    assert not (places["cache"] / "kogata").exists(), "nothing was trained"


@pytest.mark.parametrize("nearest", ["checkout", "option", "environment", "cache"])
def test_the_nearest_copy_of_a_dense_model_is_read(
    nearest: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(builtin, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("KOGATA_DATA", str(tmp_path / "environment"))
    trained, _ = digits(1).open(0, None)
    (cached,) = (places["cache"] / "kogata/dense").iterdir()
    folders = {
        "checkout": tmp_path / "checkout/data/networks",
        "option": tmp_path / "option/networks",
        "environment": tmp_path / "environment/networks",
        "cache": cached.parent,
    }
    order = list(folders)
    for place in order[order.index(nearest) :]:
        folders[place].mkdir(parents=True, exist_ok=True)
        value = float(order.index(place))  # tells the copies apart
        tensors = {name: torch.full_like(tensor, value) for name, tensor in trained.state_dict().items()}
        keep(folders[place] / cached.name, tensors, "")
    monkeypatch.setattr(builtin, "fit", lambda *_, **__: pytest.fail("a copy is there"))
    found, _ = digits(1).open(0, tmp_path / "option" if nearest in ("checkout", "option") else None)
    assert all(bool((tensor == order.index(nearest)).all()) for tensor in found.state_dict().values())


def test_a_damaged_copy_gives_way_to_the_next(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    first, _ = digits(1).open(0, None)
    (cached,) = (places["cache"] / "kogata/dense").iterdir()
    damaged = tmp_path / "environment" / "networks" / cached.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(cached.read_bytes()[:-100])
    monkeypatch.setenv("KOGATA_DATA", str(tmp_path / "environment"))
    monkeypatch.setattr(builtin, "fit", lambda *_, **__: pytest.fail("the cache has it"))
    with caplog.at_level(logging.WARNING):
        again, _ = digits(1).open(0, None)
    assert f"{damaged} is damaged" in caplog.text
    assert same(first, again)


def test_opening_leaves_the_random_generator_alone(places: dict[str, Path]):
    drawn = []
    for _ in range(2):  # trained, then read from the cache
        torch.manual_seed(5)
        digits(1).open(0, None)
        drawn.append(torch.rand(1).item())
    torch.manual_seed(5)
    assert drawn == [torch.rand(1).item()] * 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "junk"])
def test_a_damaged_cache_is_trained_again(damage: str, places: dict[str, Path], caplog: pytest.LogCaptureFixture):
    first, _ = digits(1).open(0, None)
    (path,) = (places["cache"] / "kogata/dense").iterdir()
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    path.write_bytes({"flipped": bytes(flipped), "cut": content[:-100], "empty": b"", "junk": b"junk" * 100}[damage])
    with caplog.at_level(logging.WARNING):
        again, _ = digits(1).open(0, None)
    assert "is damaged: training the dense model again" in caplog.text
    assert same(first, again)
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_only_time(places: dict[str, Path], caplog: pytest.LogCaptureFixture):
    places["cache"].write_text("a file where a folder is wanted")
    model, task = digits(1).open(0, None)
    assert task.evaluate is not None
    assert task.evaluate(model) > 20
    assert "trained again next time" in caplog.text


def test_accuracy_counts_and_restores_the_mode():
    class Echo(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return nn.functional.one_hot(inputs, 4).float()

    model = Echo().train()
    batches = Batches(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2, 3, 0]), 2, shuffle=False)
    assert accuracy(batches, model) == 80.0
    assert model.training

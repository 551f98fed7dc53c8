"""The training loop: exact resume, early stopping, and failures that say what to do."""

from __future__ import annotations

import io
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kogata import Task
from kogata.errors import DataError, UsageError
from kogata.methods import KMeans
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.testing.comparisons import assert_equal
from kogata.testing.models import job_of
from kogata.training import checkpoint as checkpoints
from kogata.training.loop import Training, fit, task_loss


class Network(nn.Module):
    """Dropout and batch normalization: a resumed run must restore random state and buffers too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def network() -> nn.Module:
    torch.manual_seed(5)
    return Network()


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator))


class Interrupted(Exception):  # noqa: N818
    pass


class Loader:
    """Shuffled batches that break off in the given epoch."""

    def __init__(self, breaks_in: int | None = None) -> None:
        self.loader, self.epoch, self.breaks_in = DataLoader(data(), batch_size=8, shuffle=True), 0, breaks_in

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for number, batch in enumerate(self.loader):
            if self.epoch == self.breaks_in and number == 2:
                raise Interrupted
            yield batch


def task(train: Any, **more: Any) -> Task:
    return Task(calibration=[data()[:4]], train=train, loss=nn.functional.cross_entropy, **more)


def trained(model: nn.Module, on: Task, settings: Training, checkpoint: Path | None = None) -> tuple[Any, ...]:
    return fit(model, on, settings, task_loss(on), seed=3, what="test", checkpoint=checkpoint)


SETTINGS = Training(epochs=4, learning_rate=1e-2, floor=0.1, weight_decay=0.01)


@pytest.mark.parametrize("breaks_in", [1, 2, 4])
def test_a_resumed_run_ends_with_the_same_bits(breaks_in: int, tmp_path: Path) -> None:
    whole, broken, checkpoint = network(), network(), tmp_path / "training.pt"
    epochs = trained(whole, task(Loader()), SETTINGS)
    with pytest.raises(Interrupted):
        trained(broken, task(Loader(breaks_in)), SETTINGS, checkpoint)
    assert checkpoint.exists() == (breaks_in > 1)
    resumed, rest = network(), Loader()
    torch.manual_seed(99)  # a new process has another random state
    again = trained(resumed, task(rest), SETTINGS, checkpoint)
    assert rest.epoch == 4 - (breaks_in - 1)
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert again == epochs


def test_a_resumed_compressed_model_ends_with_the_same_bits(tmp_path: Path) -> None:
    job = KMeans(clusters=6).apply(job_of("conv"))
    settings, checkpoint = Training(epochs=2, learning_rate=1e-2), tmp_path / "training.pt"
    models = [surgery.clone(job.model, share=False) for _ in range(3)]
    trained(models[0], job.task, settings)
    trained(models[1], job.task, Training(epochs=1, learning_rate=1e-2), checkpoint)
    trained(models[2], job.task, settings, tmp_path / "other.pt")
    assert_equal(models[2].state_dict(), models[0].state_dict())


def test_same_seed_same_bits_and_random_state_is_left_alone() -> None:
    first, second = network(), network()
    trained(first, task(Loader()), SETTINGS)
    torch.manual_seed(11)
    wanted = torch.get_rng_state()
    trained(second, task(Loader()), SETTINGS)
    assert torch.equal(torch.get_rng_state(), wanted)
    assert_equal(first.state_dict(), second.state_dict())


def test_every_epoch_is_shuffled_anew() -> None:
    class Watched(Loader):
        orders: list[Tensor]

        def __iter__(self) -> Iterator[Any]:
            batches = list(super().__iter__())
            self.orders.append(torch.cat([inputs for inputs, _ in batches]))
            return iter(batches)

    loader = Watched()
    loader.orders = []
    trained(network(), task(loader), SETTINGS)
    assert len(loader.orders) == 4
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(loader.orders, 2))


def test_cosine_schedule_and_losses() -> None:
    epochs = trained(network(), task(Loader()), SETTINGS)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert SETTINGS.rate(0) == pytest.approx(1e-2)
    assert SETTINGS.rate(0.5) == pytest.approx(1e-2 * 0.55)
    assert SETTINGS.rate(1) == pytest.approx(1e-3)
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([SETTINGS.rate((e + 4 / 5) / 4) for e in range(4)])
    assert epochs[-1].loss < epochs[0].loss


@pytest.mark.parametrize(
    ("scores", "patience", "length", "best"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.9], 2, 4, 2),
        ([0.1, 0.5, 0.4, 0.6, 0.2], 2, 5, 4),
        ([0.0, -0.5, -1.0, -1.0, -1.0], 3, 4, 1),  # zero is a score like any other
        ([-3.0, -2.0, -1.0, -0.5, -0.1], 1, 5, 5),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 2, 3, 1),
    ],
)
def test_early_stopping_keeps_the_best(scores: list[float], patience: int, length: int, best: int) -> None:
    states: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> float:
        assert not model.training
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return scores[len(states) - 1]

    model = network()
    epochs = trained(model, task(Loader(), validate=validate), Training(epochs=5, learning_rate=1e-2, patience=patience))
    assert [epoch.score for epoch in epochs] == scores[:length]
    assert_equal(model.state_dict(), states[best - 1])
    assert model.training


def test_validation_alone_stops_nothing() -> None:
    epochs = trained(network(), task(Loader(), validate=lambda _: 1.0), Training(epochs=3))
    assert len(epochs) == 3


def test_patience_needs_a_score() -> None:
    with pytest.raises(UsageError, match=r"test: patience needs task\.validate"):
        trained(network(), task(Loader()), Training(epochs=3, patience=1))


def test_a_loss_that_is_not_finite_names_the_epoch() -> None:
    class Poisoned(Loader):
        def __iter__(self) -> Iterator[Any]:
            for inputs, targets in super().__iter__():
                yield (inputs * float("nan") if self.epoch == 2 else inputs), targets

    with pytest.raises(DataError, match=r"test: the loss became nan in epoch 2\."):
        trained(network(), task(Poisoned()), SETTINGS)


def test_no_data_no_parameters() -> None:
    with pytest.raises(DataError, match="training data of task 'task' is empty"):
        trained(network(), task([]), SETTINGS)
    with pytest.raises(DataError, match="has no training data"):
        trained(network(), task(None), SETTINGS)
    frozen = network().requires_grad_(False)
    with pytest.raises(DataError, match="no parameter of the model is trainable"):
        trained(frozen, task(Loader()), SETTINGS)
    with pytest.raises(DataError, match="needs a loss"):
        task_loss(Task(calibration=[]))


def test_a_generator_that_ends_after_one_epoch_is_said_to_be_empty() -> None:
    with pytest.raises(DataError, match="is empty"):
        trained(network(), task(iter([data()[:8]])), SETTINGS)


def test_frozen_parameters_stay() -> None:
    model = network()
    first = model.get_parameter("layers.0.weight").requires_grad_(False)
    before = first.detach().clone()
    trained(model, task(Loader()), SETTINGS)
    assert torch.equal(first, before)


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.pt"
    trained(network(), task(Loader()), Training(epochs=1), checkpoint)
    state = torch.load(io.BytesIO(checkpoint.read_bytes()[: -checkpoints.DIGEST]), weights_only=True)
    assert state["history"][0]["epoch"] == 1


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_checkpoint_with_a_changed_bit_is_refused(place: float, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    checkpoints.save(path, {"model": {"weight": torch.ones(50)}})
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        checkpoints.load(path)


def test_methods_are_frozen() -> None:
    method: Method = KMeans(clusters=3)
    with pytest.raises(AttributeError):
        method.clusters = 4  # type: ignore[attr-defined]


TWO_PROCESSES = """
import sys, torch
from accelerate import PartialState
from torch import nn
from kogata import Task
from kogata.training.loop import Training, fit, task_loss

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(4, 2)
generator = torch.Generator().manual_seed(1)
batches = [(torch.randn(6, 4, generator=generator), torch.randint(0, 2, (6,), generator=generator)) for _ in range(4)]
task = Task(calibration=batches, train=batches, loss=nn.functional.cross_entropy)
fit(model, task, Training(epochs=2, learning_rate=1e-2), task_loss(task), seed=0, what="test")
rank = PartialState().process_index
torch.save(model.state_dict(), sys.argv[1] + f"/{rank}.pt")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, str(script), str(tmp_path)]
    workers = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=60)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_equal(states[0], states[1])
    torch.manual_seed(0)
    by_hand = nn.Linear(4, 2)
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(6, 4, generator=generator), torch.randint(0, 2, (6,), generator=generator)) for _ in range(4)]
    optimizer = torch.optim.AdamW(by_hand.parameters(), weight_decay=0.0)
    settings = Training(epochs=2, learning_rate=1e-2)
    for epoch in range(2):
        for step in range(2):
            pair = batches[2 * step : 2 * step + 2]
            loss = sum((nn.functional.cross_entropy(by_hand(x), y) for x, y in pair), torch.zeros(())) / 2
            optimizer.param_groups[0]["lr"] = settings.rate((epoch + step / 2) / 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(states[0][name], tensor, rtol=0, atol=2e-4)  # a hundredth of a step: Adam magnifies rounding

"""The only training loop. It uses Hugging Face ``accelerate``, so ``accelerate launch`` trains on several devices.

Each epoch sets its own random seed and ends with a checkpoint. A run that was killed resumes after its last finished epoch and
gives bit for bit the weights of an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from kogata.errors import DataError, FileFormatError, UsageError
from kogata.job import Epoch, Task
from kogata.network.batch import call, count_of, evaluating, move, split
from kogata.settings import Range, check
from kogata.system import progress
from kogata.system.environment import environment
from kogata.training import checkpoint
from kogata.training.wrapper import TrainingWrapper

log = logging.getLogger("kogata")


Epochs = Annotated[int, Range(ge=1)]
NonNegative = Annotated[float, Range(ge=0)]
Patience = Annotated[int, Range(ge=1)] | None

Objective = Callable[[Any, Any, Any], Tensor]
"""The loss that a training step minimizes: a function of (output, inputs, targets) that returns a scalar tensor."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training run: AdamW, with a cosine schedule from ``learning_rate`` to ``floor · learning_rate``.

    >>> training = Training(epochs=10, learning_rate=0.01, floor=0.1)
    >>> training.rate(0.0), round(training.rate(1.0), 6)
    (0.01, 0.001)

    :param epochs: passes over ``task.train``, at least 1; with ``patience`` the highest number of passes.
    :param learning_rate: the initial learning rate.
    :param floor: the final learning rate as a fraction of the initial one.
    :param weight_decay: AdamW's decoupled weight decay.
    :param patience: stop after this many epochs in which ``task.validate`` did not improve, and restore the weights of the
        best epoch; None trains for all epochs and keeps the last weights.
    :raises UsageError: a setting is negative or not finite, or ``epochs`` or ``patience`` is below 1.
    """

    epochs: Epochs
    learning_rate: NonNegative = 1e-3
    floor: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    patience: Patience = None

    def __post_init__(self) -> None:
        check(self, "training")

    def rate(self, progress: float) -> float:
        """The learning rate after a fraction ``progress``, from 0 to 1, of all steps."""
        return self.learning_rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2)


def task_loss(task: Task) -> Objective:
    """The task's own loss as an objective. Raises DataError when the task has none."""
    loss = task.loss
    if loss is None:
        raise DataError(f"task {task.name!r}: training on labels needs a loss; give it one, or distil from the original.")
    return lambda output, _, targets: loss(output, targets)


def training_data(task: Task, what: str) -> Iterable[Any]:
    """The task's training batches. Raises DataError, opening with ``what``, when the task has none."""
    if task.train is None:
        raise DataError(f"{what}: task {task.name!r} has no training data; give it train(), or leave out the training steps.")
    return task.train


def channels_last(model: nn.Module) -> nn.Module:
    """Convert a model with 2-d convolutions in place to the channels-last layout, in which they run about twice as fast."""
    images = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return model.to(**_layout(torch.channels_last)) if images else model


def _layout(memory_format: torch.memory_format) -> dict[str, Any]:
    return {"memory_format": memory_format}  # in a dictionary: the type stubs of Module.to lack this argument


def autocast(device: torch.device) -> torch.autocast:
    """The autocast context of training: bfloat16 where the hardware has fast bfloat16 arithmetic, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16())


def _fast_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool({"avx512_bf16", "amx_bf16"} & set(environment()["cpu_flags"]))


def fit(
    model: nn.Module, task: Task, settings: Training, objective: Objective, *, seed: int, what: str,
    checkpoint: Path | None = None,
) -> tuple[Epoch, ...]:  # fmt: skip
    """Train ``model`` in place on ``task.train`` and return one :class:`~kogata.job.Epoch` for each epoch.

    A TrainingWrapper's penalty is added to the loss, and its ``step`` is called after each optimizer step.

    >>> model = nn.Linear(4, 2)
    >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
    >>> task = Task(calibration=[batch], train=[batch], loss=nn.functional.cross_entropy)
    >>> epochs = fit(model, task, Training(epochs=2), task_loss(task), seed=0, what="example")
    >>> [epoch.epoch for epoch in epochs]
    [1, 2]

    :param objective: the loss of (output, inputs, targets), such as :func:`task_loss` gives.
    :param what: the name of this training in messages and progress bars.
    :param checkpoint: file written after every epoch; if it exists, training resumes from it.
    :raises DataError: the training data is missing or empty, the loss is not finite, or no parameter can be trained.
    :raises UsageError: ``settings.patience`` is set and the task has no ``validate``.
    """
    training_data(task, what)
    if settings.patience is not None and task.validate is None:
        raise UsageError(
            f"{what}: patience needs task.validate, a score on held-out data: the test score must not decide when to stop."
        )
    return _Fit(model, task, settings, objective, seed, what, checkpoint).run()


class _Fit:
    """The state of one call of :func:`fit`."""

    def __init__(
        self, model: nn.Module, task: Task, settings: Training, objective: Objective, seed: int, what: str,
        checkpoint: Path | None,
    ) -> None:  # fmt: skip
        self.task, self.settings, self.objective = task, settings, objective
        self.seed, self.what, self.checkpoint = seed, what, checkpoint
        self.bare, self.home = model, next(model.parameters()).device
        self.wrapper = model if isinstance(model, TrainingWrapper) else None
        self.accelerator = Accelerator(mixed_precision="bf16" if _fast_bfloat16() else "no")
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise DataError(f"{what}: no parameter of the model is trainable; set requires_grad on those that should be.")
        if any(parameter.dtype == torch.float16 for parameter in trainable):
            raise DataError(
                f"{what}: float16 weights cannot be trained: squared gradients underflow. Convert the model and its "
                "inputs with .bfloat16() or .float() first."
            )
        optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(channels_last(model), optimizer)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None

    def run(self) -> tuple[Epoch, ...]:
        self._resume()
        modes = {module: module.training for module in self.bare.modules()}
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        for number in range(len(self.history) + 1, self.settings.epochs + 1):
            if self._stopped():
                break
            set_seed(self.seed * 100_003 + number)
            self.history.append(self._epoch(number))
            self._save()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if self.best is not None:
            self.bare.load_state_dict(self.best)
        for module, mode in modes.items():
            module.training = mode
        # accelerate replaces the model's forward by one that casts, and skips models that it has marked as prepared. Both
        # are removed, or the next training of this model would differ from that of the same model read from a checkpoint.
        for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):
            self.bare.__dict__.pop(mark, None)
        self.bare.to(self.home, **_layout(torch.contiguous_format))
        return tuple(self.history)

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        batches = cast("Iterable[Any]", self.task.train)
        count = count_of(batches)
        total, steps, rate = torch.zeros((), device=self.accelerator.device), 0, self.settings.learning_rate
        shard = islice(batches, self.accelerator.process_index, None, self.accelerator.num_processes)
        share = None if count is None else math.ceil(count / self.accelerator.num_processes)
        with progress.bar(f"{self.what} {number}/{self.settings.epochs}", share) as line:
            for batch in shard:
                rate = self.settings.rate(self._progress(number, steps, share))
                loss = self._step(batch, rate)
                total, steps = total + loss, steps + 1
                if self.wrapper is not None:
                    self.wrapper.step(self._progress(number, steps, share))
                if steps == 1 or steps % 20 == 0:
                    self._finite(total, number)
                    line.advance(f"loss {float(total) / steps:.4f}")
                else:
                    line.advance()
        if not steps:
            raise DataError(f"{self.what}: the training data of task {self.task.name!r} is empty; give at least one batch.")
        self._finite(total, number)
        score = self._validate()
        epoch = Epoch(epoch=number, loss=float(total) / steps, learning_rate=rate, score=score)
        log.info("%s: epoch %d of %d, loss %.4f", self.what, number, self.settings.epochs, epoch.loss)
        return epoch

    def _step(self, batch: Any, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = move(split(batch), self.accelerator.device)
        with self.accelerator.autocast():  # for the teacher in the objective; the model's own forward casts already
            loss = self.objective(call(self.model, inputs), inputs, targets)
        if self.wrapper is not None:
            loss = loss + self.wrapper.penalty()
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _progress(self, number: int, steps: int, share: int | None) -> float:
        """The fraction of all steps that are done; for data without a length, the fraction of finished epochs."""
        return (number - 1 + (steps / share if share else 0)) / self.settings.epochs

    def _finite(self, total: Tensor, number: int) -> None:
        if not torch.isfinite(total):
            raise DataError(
                f"{self.what}: the loss became {float(total)} in epoch {number}. Check the data and the loss for NaN, or lower "
                f"the learning rate ({self.settings.learning_rate})."
            )
        for name, buffer in self.bare.named_buffers():
            if buffer.is_floating_point() and not torch.isfinite(buffer).all():
                raise DataError(
                    f"{self.what}: the buffer {name} became NaN or infinite in epoch {number}. Scale the training data down: "
                    f"squares of activations overflow {str(buffer.dtype).removeprefix('torch.')}."
                )

    def _validate(self) -> float | None:
        if self.task.validate is None:
            return None
        with evaluating(self.bare) as model:
            score = float(self.task.validate(model))
        if self.settings.patience is not None and all(e.score is None or score > e.score for e in self.history):
            self.best = {name: tensor.clone() for name, tensor in self.bare.state_dict().items()}
        return score

    def _stopped(self) -> bool:
        scores = [epoch.score for epoch in self.history if epoch.score is not None]
        patience = self.settings.patience
        return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def _save(self) -> None:
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        state = {
            "model": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "history": [asdict(epoch) for epoch in self.history],
        }  # fmt: skip
        checkpoint.save(self.checkpoint, state)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            state = checkpoint.load(self.checkpoint)
            self.bare.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best, self.history = state["best"], [Epoch(**epoch) for epoch in state["history"]]
        except Exception as error:  # whatever torch raises for a truncated or foreign file
            raise FileFormatError(
                f"{self.checkpoint}: this checkpoint of {self.what} is damaged ({type(error).__name__}). Restore it, or delete "
                "it and repeat the command with --resume: the epochs of this step start anew, the steps before it are kept."
            ) from error
        log.info("%s: resumed after epoch %d", self.what, len(self.history))

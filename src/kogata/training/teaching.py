"""Train a model together with the loss module of a distillation term."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.job import Job
from kogata.network.batch import call, evaluating, move, output_error, split, tensors
from kogata.training.loop import Objective, autocast, training_data
from kogata.training.teachers.observe import Observer, Seen
from kogata.training.terms.base import Loss, Term
from kogata.training.terms.soft_targets import soft
from kogata.training.wrapper import TrainingWrapper

Teacher = Callable[[Any, torch.device], Seen]
"""Gives the teacher's outputs for inputs that lie on the given device."""


class Taught(TrainingWrapper):
    """A model, or another wrapper around one, trained together with the loss module of a term and that module's parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__(model)
        self.loss = loss

    def penalty(self) -> Tensor:
        """The penalty of the inner wrapper; 0 for a plain model."""
        return self.model.penalty() if isinstance(self.model, TrainingWrapper) else super().penalty()

    def step(self, progress: float) -> None:
        """Update the inner wrapper, if there is one."""
        if isinstance(self.model, TrainingWrapper):
            self.model.step(progress)

    def finish(self) -> nn.Module:
        """The trained model without the loss module."""
        return self.model.finish() if isinstance(self.model, TrainingWrapper) else self.model


def begin_teaching(term: Term, model: nn.Module, observer: Observer, teacher: Teacher, job: Job, what: str) -> Taught:
    """Build the term's loss module from the first training batch, and wrap the model together with it.

    Raises DataError when there is no training data or the loss is not finite on that batch.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)  # so that a resumed run has the same data order and the same initial regressors
        batch = next(iter(training_data(job.task, what)), None)
        if batch is None:
            raise DataError(f"{what}: the training data of task {job.task.name!r} is empty; give at least one batch.")
        inputs, targets = move(split(batch), device)
        with evaluating(model), autocast(device):
            student, wanted = observer.seen(call(model, inputs)), teacher(inputs, device)
        taught = Taught(model, term.begin(student, wanted, job.task).to(device))
    with evaluating(taught.loss):
        first = float(taught.loss(student, wanted, targets))
    if not math.isfinite(first):
        raise DataError(f"{what}: term {term.term} is {first} on the first batch. Check the data and both models for NaN.")
    return taught


def compared(weight: float, loss: Loss, observer: Observer, teacher: Teacher) -> Objective:
    def objective(output: Any, inputs: Any, targets: Any) -> Tensor:
        student, device = observer.seen(output), next(tensors(output)).device
        wanted = teacher(inputs, device)
        with torch.autocast(device.type, enabled=False):  # bfloat16 is too coarse for differences of nearly equal tensors
            return weight * loss(student, wanted, targets)

    return objective


def match(output: Any, wanted: Any, targets: Any, temperature: float) -> Tensor:
    """The loss of a student's ``output`` against the teacher's, ``wanted``.

    It is T² KL of the softened class distributions (see :mod:`kogata.training.terms.soft_targets`) when ``targets`` are indices
    of classes along axis 1 of ``output``, else the relative squared error of the outputs.

    Raises DataError when the two outputs differ in structure or shape.
    """
    if (
        isinstance(output, Tensor) and isinstance(wanted, Tensor) and isinstance(targets, Tensor)
        and not targets.is_floating_point() and output.ndim >= 2 and output.shape == wanted.shape
        and targets.shape == output.shape[:1] + output.shape[2:]
    ):  # fmt: skip
        return soft(output.float(), wanted.float(), temperature, 1)
    return output_error(output, wanted)

"""Recovery: retrain the parameters that a step left trainable, with the original or another model as the teacher.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (1503.02531), section 2:
    L = (1 − α) · loss(output, target) + α T² KL(softmax(teacher / T) ‖ softmax(output / T)).
Where the outputs are not class logits, the second term is ‖output − teacher‖² / ‖teacher‖², so that any model can be retrained.
Without labels α is 1. A ``term`` replaces this loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from kogata.job import Epoch, Job, Task
from kogata.methods.base.method import About, Method
from kogata.network import surgery
from kogata.network.batch import tensors
from kogata.settings import Range
from kogata.training.loop import Epochs, NonNegative, Objective, Patience, Training, fit, task_loss, training_data
from kogata.training.teachers.cache import Cached, Precision, make
from kogata.training.teachers.observe import Live, Observer, paths
from kogata.training.teaching import Teacher, begin_teaching, compared, match
from kogata.training.terms.base import Term
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class Recover(Method):
    """Train the kept weights, centroids, scales and factors; masks, codes and indices stay as they are.

    ``distill`` is α, the weight of the teacher in [0, 1]; ``temperature`` is T, above 0. A ``term`` from
    ``kogata.training.terms`` replaces both and may also compare outputs of inner layers. ``cache`` is a folder for the outputs
    of the teacher, stored in ``cache_precision``. It is written at first use and read from then on, so the training data must
    be without random augmentation. ``epochs``, ``learning_rate``, ``floor``, ``weight_decay`` and ``patience`` are those of
    :class:`kogata.training.loop.Training`. Raises DataError without training data.

    >>> from kogata.methods import Recover
    >>> from kogata.testing.models import job_of
    >>> job = Recover(epochs=1, learning_rate=1e-3).apply(job_of("conv"))
    >>> [epoch.epoch for epoch in job.epochs]
    [1]
    """

    epochs: Epochs
    learning_rate: NonNegative = 1e-3
    floor: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    patience: Patience = None
    distill: Annotated[float, Range(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Range(gt=0)] = 4.0
    term: Term | None = None
    cache: str | None = None
    cache_precision: Precision = "float16"

    ABOUT = About(
        name="recover",
        family="distillation",
        summary="retrain after a step, with the original model as teacher",
        paper="Hinton et al. 2015, arXiv 1503.02531",
        training=True,
    )

    @property
    def training(self) -> Training:
        """The settings of the training loop."""
        return Training(
            epochs=self.epochs, learning_rate=self.learning_rate, floor=self.floor, weight_decay=self.weight_decay,
            patience=self.patience,
        )  # fmt: skip

    def apply(self, job: Job) -> Job:
        """Train a copy of the model; raises DataError without training data."""
        model = surgery.clone(job.model, share=False)
        return replace(job, model=model, epochs=self.train(model, job, self.ABOUT.name))

    def train(self, model: nn.Module, job: Job, what: str) -> tuple[Epoch, ...]:
        """Train ``model``, or a wrapper around it, in place, and return its epochs. ``what`` names the step in messages.

        Raises UsageError or DataError before training starts when the term cannot compare the model with its teacher.
        """
        checkpoint = None if job.folder is None else job.folder / "training.pt"
        if self.term is None:
            objective = self._mixed(job.task, self._teacher(job, (), what) if self._alpha(job.task) > 0 else None)
            return fit(model, job.task, self.training, objective, seed=job.seed, what=what, checkpoint=checkpoint)
        bare = model.model if isinstance(model, TrainingWrapper) else model
        ours, theirs = self.term.watch(paths(bare), paths(job.reference))
        teacher, observer = self._teacher(job, theirs, what), Observer(bare, ours)
        try:
            taught = begin_teaching(self.term, model, observer, teacher, job, what)
            objective = compared(self.term.weight, taught.loss, observer, teacher)
            return fit(taught, job.task, self.training, objective, seed=job.seed, what=what, checkpoint=checkpoint)
        finally:
            observer.close()

    def objective(self, task: Task, teacher: nn.Module) -> Objective:
        """The loss without a term, as a function of (output, inputs, targets), for use in a training loop of your own."""
        return self._mixed(task, Live(teacher))

    def _mixed(self, task: Task, teacher: Teacher | None) -> Objective:
        alpha = self._alpha(task)
        labels = None if task.loss is None else task_loss(task)

        def loss(output: Any, inputs: Any, targets: Any) -> Tensor:
            parts = list[Tensor]()
            if labels is not None and alpha < 1:
                parts.append((1 - alpha) * labels(output, inputs, targets))
            if teacher is not None and alpha > 0:
                wanted = teacher(inputs, next(tensors(output)).device).output
                parts.append(alpha * match(output, wanted, targets, self.temperature))
            return torch.stack(parts).sum()

        return loss

    def _alpha(self, task: Task) -> float:
        return 1.0 if task.loss is None else self.distill

    def _teacher(self, job: Job, layers: tuple[str, ...] | list[str], what: str) -> Teacher:
        """The original model, or the cache of its outputs."""
        if self.cache is None:
            return Live(job.reference, layers)
        folder, batches = Path(self.cache), training_data(job.task, what)
        new = not (folder / "header.json").exists()
        if new:
            make(folder, job.reference, batches, layers, precision=self.cache_precision, seed=job.seed)
        cached = Cached(folder, job.reference, layers, self.cache_precision)
        if not new:  # a new cache was computed from these very batches
            cached.check(batches, job.seed)
        return cached

"""Recovery: retrain what a step left trainable, with the original model as the teacher.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (1503.02531), section 2:
    L = (1 − α) · loss(output, target) + α T² KL(softmax(teacher / T) ‖ softmax(output / T)).
Where the output is not class logits, the second term is ‖output − teacher‖² / ‖teacher‖², so any output can be recovered.
Without labels α is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import surgery
from kogata.batch import call, output_error, tensors
from kogata.errors import UsageError
from kogata.job import Epoch, Job, Task
from kogata.method import About, Method
from kogata.train import Objective, Training, channels_last, fit, task_loss


@final
@dataclass(frozen=True, kw_only=True)
class Recover(Method):
    """Train the kept weights, centroids, scales and factors; masks, codes and indices stay as they are.

    ``distill`` is α, the weight of the teacher in [0, 1]; ``temperature`` is T. The other settings are those of
    :class:`kogata.train.Training`.
    """

    epochs: int
    learning_rate: float = 1e-3
    floor: float = 0.0
    weight_decay: float = 0.0
    patience: int | None = None
    distill: float = 0.5
    temperature: float = 4.0

    ABOUT = About(
        name="recover",
        family="distillation",
        summary="retrain after a step, with the original model as teacher",
        paper="Hinton et al. 2015, arXiv 1503.02531",
        training=True,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.distill <= 1:
            raise UsageError(f"recover: distill is {self.distill}; expected 0 (labels only) to 1 (teacher only).")
        if not self.temperature > 0:
            raise UsageError(f"recover: temperature is {self.temperature}; expected more than 0.")
        self.training  # noqa: B018 - checks the other settings

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
        """Train ``model``, or a regime around it, in place, as the step ``what`` of a job."""
        checkpoint = None if job.folder is None else job.folder / "training.pt"
        objective = self.objective(job.task, job.reference)
        return fit(model, job.task, self.training, objective, seed=job.seed, what=what, checkpoint=checkpoint)

    def objective(self, task: Task, teacher: nn.Module) -> Objective:
        """What to minimize, of (output, inputs, targets); usable in a loop of one's own."""
        alpha = 1.0 if task.loss is None else self.distill
        teacher = channels_last(surgery.clone(teacher, share=False)).eval()  # the user's model keeps its mode and layout
        labels = None if task.loss is None else task_loss(task)

        def loss(output: Any, inputs: Any, targets: Any) -> Tensor:
            parts = list[Tensor]()
            if labels is not None and alpha < 1:
                parts.append((1 - alpha) * labels(output, inputs, targets))
            if alpha > 0:
                with torch.no_grad():
                    wanted = call(teacher.to(next(tensors(output)).device), inputs)
                parts.append(alpha * match(output, wanted, targets, self.temperature))
            return torch.stack(parts).sum()

        return loss


def match(output: Any, wanted: Any, targets: Any, temperature: float) -> Tensor:
    """T² KL of class distributions when ``targets`` are class indices of ``output``'s second axis, else the output error."""
    if (
        isinstance(output, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point()
        and output.ndim >= 2 and targets.shape == output.shape[:1] + output.shape[2:]
    ):  # fmt: skip
        student = functional.log_softmax(output.float() / temperature, dim=1)
        teacher = functional.log_softmax(wanted.float() / temperature, dim=1)
        return temperature**2 * functional.kl_div(student, teacher, log_target=True, reduction="sum") / targets.numel()
    return output_error(output, wanted)

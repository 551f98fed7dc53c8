"""Soft targets: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (1503.02531), section 2:

    L = T² KL(softmax(teacher / T) ‖ softmax(student / T)),   averaged over examples.
The factor T² cancels the 1 / T² by which the gradient shrinks. For large T the gradient is that of regressing centred logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import UsageError
from kogata.job import Task
from kogata.settings import Range
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Formula, Loss, Term, alike, paired


@final
@dataclass(frozen=True, kw_only=True)
class SoftTargets(Term):
    """Compare class distributions at ``temperature`` T.

    ``axis`` is the axis of the classes: 1 for outputs ``[N, classes, ...]``, -1 for sequences ``[N, T, classes]``.

    >>> SoftTargets(temperature=2.0, weight=0.9).axis
    1
    """

    term: str = field(default="soft-targets", init=False)
    temperature: Annotated[float, Range(gt=0)] = 4.0
    axis: int = 1

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises UsageError when an output lacks the axis, DataError when its shape differs from the teacher's."""
        pairs = paired(student.output, teacher.output)
        alike(pairs, self.term)
        if any(not self.axis % ours.ndim > 0 or not -ours.ndim <= self.axis < ours.ndim for ours, _ in pairs):
            shapes = ", ".join(str(tuple(ours.shape)) for ours, _ in pairs)
            raise UsageError(f"term {self.term}: axis {self.axis} cannot be the axis of classes in outputs of shapes {shapes}.")
        return Formula(self._loss)

    def _loss(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = paired(student.output, teacher.output)
        return torch.stack([soft(ours, theirs, self.temperature, self.axis) for ours, theirs in pairs]).sum()


def soft(output: Tensor, wanted: Tensor, temperature: float, axis: int) -> Tensor:
    """T² KL(softmax(wanted / T) ‖ softmax(output / T)) along ``axis``, averaged over all other axes; a scalar."""
    ours = functional.log_softmax(output / temperature, dim=axis)
    theirs = functional.log_softmax(wanted / temperature, dim=axis)
    examples = output.numel() // output.shape[axis]
    return temperature**2 * functional.kl_div(ours, theirs, log_target=True, reduction="sum") / examples

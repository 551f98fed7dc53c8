"""The task's own loss on the labels, which needs no teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from kogata.errors import DataError
from kogata.job import Task
from kogata.training.loop import task_loss
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Formula, Loss, Term


@final
@dataclass(frozen=True, kw_only=True)
class Labels(Term):
    """The task's loss of the student's output against the targets of the batch."""

    term: str = field(default="labels", init=False)

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises DataError when the task has no loss; the loss raises it for a batch without targets."""
        loss = task_loss(task)

        def formula(student: Seen, _: Seen, targets: Any) -> Tensor:
            if targets is None:
                raise DataError(f"term labels: a training batch of task {task.name!r} has no targets; leave this term out.")
            return loss(student.output, None, targets)

        return Formula(formula)

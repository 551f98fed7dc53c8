"""Regression of logits: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (1312.6184), equation 2:

    L = ½ ‖student − teacher‖²,   summed over classes and averaged over examples.
It compares scores before the softmax, so the teacher's scores of unlikely classes count too. It needs no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from kogata.job import Task
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Formula, Loss, Term, alike, paired


@final
@dataclass(frozen=True, kw_only=True)
class LogitRegression(Term):
    """Half the squared distance of the outputs, summed over all axes but the first, averaged over the first."""

    term: str = field(default="logit-regression", init=False)

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises DataError when the outputs differ in structure or shape."""
        alike(paired(student.output, teacher.output), self.term)
        return Formula(_loss)


def _loss(student: Seen, teacher: Seen, targets: Any) -> Tensor:
    pairs = paired(student.output, teacher.output)
    return torch.stack([(ours - theirs).square().sum() / 2 / len(ours) for ours, theirs in pairs]).sum()

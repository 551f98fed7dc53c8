"""Regression of the teacher's outputs: embeddings, boxes, heat maps or sequences, in any nesting of tensors.

relative:  L = ‖student − teacher‖² / ‖teacher‖²,   over all tensors together;
cosine:    L = 1 − ⟨student, teacher⟩ / (‖student‖ ‖teacher‖),   of vectors along the last axis, averaged over all vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.job import Task
from kogata.network.batch import output_error
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, Formula, LayerTerm, Loss, alike


@final
@dataclass(frozen=True, kw_only=True)
class Regression(LayerTerm):
    """Compare outputs, or layers of equal shape. ``error``: "relative" compares values, "cosine" only directions.

    >>> Regression(error="cosine").error
    'cosine'
    """

    term: str = field(default="regression", init=False)
    error: Literal["relative", "cosine"] = "relative"

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises DataError when the compared tensors differ in structure or shape."""
        compared = self.compared(student, teacher)
        alike(compared(student, teacher), self.term)
        return Formula(_cosine(compared) if self.error == "cosine" else _relative(compared))


def _relative(compared: Compared) -> Any:
    def formula(student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = compared(student, teacher)
        return output_error([ours for ours, _ in pairs], [theirs for _, theirs in pairs])

    return formula


def _cosine(compared: Compared) -> Any:
    def formula(student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = compared(student, teacher)
        return torch.stack([1 - functional.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs]).mean()

    return formula

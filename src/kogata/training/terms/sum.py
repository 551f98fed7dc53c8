"""The weighted sum of several terms, which is a term itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.job import Task
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Loss, Term


@final
@dataclass(frozen=True, kw_only=True)
class SumOfTerms(Term):
    """The sum of ``terms``, each multiplied by its ``weight``. Raises UsageError when there are none.

    >>> from kogata.training.terms import Labels, SoftTargets
    >>> len(SumOfTerms(terms=(Labels(weight=0.1), SoftTargets(weight=0.9))).terms)
    2
    """

    term: str = field(default="sum", init=False)
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.terms:
            raise UsageError("term sum: terms is empty; expected at least one term.")

    def watch(self, student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
        """The layers that all the terms compare."""
        watched = [term.watch(student, teacher) for term in self.terms]
        return [name for ours, _ in watched for name in ours], [name for _, theirs in watched for name in theirs]

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Build the loss of each term, and their sum."""
        return _Sum([(term.weight, term.begin(student, teacher, task)) for term in self.terms])


class _Sum(Loss):
    def __init__(self, parts: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        self._weights = [weight for weight, _ in parts]
        self.parts = nn.ModuleList([loss for _, loss in parts])

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = zip(self._weights, self.parts, strict=True)
        return torch.stack([weight * part(student, teacher, targets) for weight, part in pairs]).sum()

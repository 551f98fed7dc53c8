"""The base classes of distillation terms.

A term is plain settings. Its :meth:`Term.begin` builds a :class:`Loss`, the module that compares a student with its teacher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor, nn

from kogata.errors import DataError, UsageError
from kogata.job import Task
from kogata.network.batch import tensors
from kogata.settings import Range, check, reference
from kogata.training.teachers.observe import Seen, pick, precise


class Loss(nn.Module, ABC):
    """The loss of a term on one batch. Its parameters, if any, are trained with the student and then discarded."""

    @abstractmethod
    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        """The loss as a scalar; lower is better."""


class Formula(Loss):
    """A loss without parameters of its own."""

    def __init__(self, formula: Callable[[Seen, Seen, Any], Tensor]) -> None:
        super().__init__()
        self._formula = formula

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        """The value of the formula."""
        return self._formula(student, teacher, targets)


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """One term of a distillation loss. Concrete terms are final; those of Kogata have the name that recipes use in ``term``.

    A term of another package is named ``package.module:Class`` in recipes, and by its ``term``. ``weight``, at least 0,
    multiplies the term, whether it stands alone or in a sum. Ranges of settings are declared with the fields and checked here.
    """

    term: str = field(default="", init=False)
    weight: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "term", reference(type(self), self.term))
        check(self, f"term {self.term}")

    def watch(self, student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
        """The student's and the teacher's layers to compare, pair by pair. Raises UsageError for unmatched globs."""
        return [], []

    @abstractmethod
    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Build the loss module for the shapes that both networks give on a first batch.

        Raises UsageError or DataError when the term cannot compare them, or the task lacks what the term needs.
        """


Compared = Callable[[Seen, Seen], list[tuple[Tensor, Tensor]]]
"""Gives the tensors to compare as pairs (student, teacher), at least float32."""


@dataclass(frozen=True, kw_only=True)
class LayerTerm(Term):
    """A term that compares layers, or outputs when no layers are named.

    ``student`` and ``teacher`` are globs on module paths. The modules they match, in the order of the globs and then of the
    model, are compared in pairs, so both must match the same number of modules.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.student) != bool(self.teacher):
            raise UsageError(
                f"term {self.term}: 'student' and 'teacher' belong together; give globs on layers for both or none."
            )

    def watch(self, student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
        """The layers that the globs match."""
        for whose, globs, names in (("student", self.student, student), ("teacher", self.teacher, teacher)):
            for glob in globs:
                if not pick(names, (glob,)):
                    raise UsageError(
                        f"term {self.term}: {whose} {glob!r} matches no layer of the {whose}. It has: {', '.join(names)}."
                    )
        ours, theirs = pick(student, self.student), pick(teacher, self.teacher)
        if len(ours) != len(theirs):
            raise UsageError(
                f"term {self.term}: the globs match {len(ours)} layers of the student ({', '.join(ours)}) and {len(theirs)} of "
                f"the teacher ({', '.join(theirs)}); layers are compared in pairs, so the numbers must be equal."
            )
        return ours, theirs

    def compared(self, student: Seen, teacher: Seen) -> Compared:
        """A function that picks the tensors to compare out of the observations of any batch."""
        names = list(zip(*self.watch(list(student.layers), list(teacher.layers)), strict=True))
        if not names:
            return lambda student, teacher: paired(student.output, teacher.output)
        return lambda student, teacher: [(student.layers[ours], teacher.layers[theirs]) for ours, theirs in names]

    def _need_layers(self) -> None:
        if not self.student:
            raise UsageError(
                f"term {self.term}: give 'student' and 'teacher', globs on the layers to compare, such as 'layer?'."
            )


def paired(output: Any, wanted: Any) -> list[tuple[Tensor, Tensor]]:
    """The float tensors of two outputs in pairs. Raises DataError when their numbers differ or there are none."""
    ours, theirs = list(tensors(output)), list(tensors(wanted))
    if len(ours) != len(theirs) or not ours:
        raise DataError(
            f"distillation: the student gives {len(ours)} float tensors and the teacher {len(theirs)}; their outputs must have "
            "the same structure."
        )
    return [(precise(a), precise(b)) for a, b in zip(ours, theirs, strict=True)]


def alike(pairs: Sequence[tuple[Tensor, Tensor]], term: str) -> None:
    """Raise DataError when two tensors to be compared entry by entry differ in shape."""
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise DataError(
                f"term {term}: the student gives shape {tuple(ours.shape)} and the teacher {tuple(theirs.shape)}; this "
                "term compares entry by entry. Give the student the teacher's shapes, or choose hints, similarity, relational "
                "or contrastive, which compare any widths."
            )


def rows(tensor: Tensor) -> Tensor:
    """One vector for each example: ``[N, ...]`` as ``[N, D]``."""
    return tensor.reshape(len(tensor), -1)

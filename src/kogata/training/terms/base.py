"""What a term of a distillation loss is: settings, which begin a module that compares a student with its teacher."""

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
    """What a term makes of one batch. Its parameters are trained with the student and then thrown away."""

    @abstractmethod
    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        """A scalar, lower is better."""


class Formula(Loss):
    """A loss without parameters of its own."""

    def __init__(self, formula: Callable[[Seen, Seen, Any], Tensor]) -> None:
        super().__init__()
        self._formula = formula

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        """The formula of them."""
        return self._formula(student, teacher, targets)


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """One term of a loss. Concrete ones are final, and those of Kogata give the field ``term`` the name that recipes use.

    Recipes call all others by ``package.module:Class``, and so does their ``term``. ``weight`` multiplies the loss, in a sum
    and alone. Ranges of settings are declared with the fields and checked here.
    """

    term: str = field(default="", init=False)
    weight: Annotated[float, Range(ge=0)] = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "term", reference(type(self), self.term))
        check(self, f"term {self.term}")

    def watch(self, student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of the layers of the two it looks at, as pairs in order. Raises UsageError where a glob does not fit."""
        return [], []

    @abstractmethod
    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """The loss, made for what the two make of a first batch.

        Raises UsageError or DataError when it cannot compare them, or the task lacks what it needs.
        """


Compared = Callable[[Seen, Seen], list[tuple[Tensor, Tensor]]]
"""The tensors to compare, at least float32: of the student, and of the teacher."""


@dataclass(frozen=True, kw_only=True)
class LayerTerm(Term):
    """A term that compares layers, or outputs when no layers are named.

    ``student`` and ``teacher`` are globs on the paths of modules. Those that they match, in the order of the globs and then of
    the modules, are compared in pairs, so they must be as many.
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
                f"the teacher ({', '.join(theirs)}); they are compared in pairs and must be as many."
            )
        return ours, theirs

    def compared(self, student: Seen, teacher: Seen) -> Compared:
        """How to find, in what the two make of any batch, what is to be compared."""
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
    """The float tensors of two outputs. Raises DataError when they are not as many, or none."""
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
                f"term {term}: the student gives shape {tuple(ours.shape)} and the teacher {tuple(theirs.shape)}; it compares "
                "them entry by entry. Give the student the teacher's output, or choose hints, similarity, relational or "
                "contrastive, which compare any widths."
            )


def rows(tensor: Tensor) -> Tensor:
    """One vector for each example: ``[N, ...]`` as ``[N, D]``."""
    return tensor.reshape(len(tensor), -1)

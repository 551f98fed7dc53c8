"""The plain data that flows through a compression: the user's task, one weight, and the state between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that depends on the user's data. Any field but ``calibration`` may be missing: a method that needs it says so.

    A batch is ``(inputs, targets)`` or just ``inputs``. Inputs are a tensor, a tuple of positional arguments or a
    dictionary of keyword arguments of the model.
    """

    calibration: Iterable[Any] | Callable[[nn.Module], object]  # a few batches, no labels needed; or feed the model itself
    train: Iterable[Any] | None = None  # (inputs, targets) batches, iterated once per epoch
    loss: Callable[[Any, Any], Tensor] | None = None  # of (output, targets): a scalar, lower is better
    evaluate: Callable[[nn.Module], float] | None = None  # the score to report, higher is better; never used to choose
    validate: Callable[[nn.Module], float] | None = None  # a score on held-out data that early stopping may look at
    name: str = "task"


class Kind(StrEnum):
    """What kind of layer a weight belongs to."""

    LINEAR = "linear"
    CONV = "conv"
    EMBEDDING = "embedding"
    OTHER = "other"  # a parameter of some other module, such as a bias or the joint projection of an attention layer


class Role(StrEnum):
    """What the numbers of a leaf are."""

    MATRIX = "matrix"  # a weight, or a factor of one, in its own shape
    VALUES = "values"  # the kept entries of a masked weight, one-dimensional
    VECTOR = "vector"  # a bias, or a scale or shift of a normalization layer
    SCALE = "scale"  # the steps of an affine quantizer
    TABLE = "table"  # the centroids of a codebook


@dataclass(frozen=True)
class Layout:
    """How ``count`` matrices ``[outputs, inputs, *kernel]`` of ``shape`` lie in one parameter.

    The parameter, seen as ``view`` and its axes put in the order ``axes``, is the matrices one after another.
    """

    view: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    count: int = 1


@dataclass(frozen=True)
class Seen:
    """What the calibration data showed of a weight: what multiplies it, and how its matrices lie in it where not as rows."""

    kind: Kind
    layout: Layout | None = None


@dataclass(frozen=True)
class Site:
    """One parameter of the model. ``name`` is its first qualified name, ``aliases`` those of other owners it is tied to.

    A plain parameter that does not hold one matrix ``[outputs, inputs, *kernel]`` as it stands has a ``layout``.
    """

    module: str
    parameter: str
    shape: tuple[int, ...]
    kind: Kind
    role: Role
    aliases: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def name(self) -> str:
        """The qualified name, such as ``features.0.weight``."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True)
class Where:
    """Which sites: by glob on the qualified name or the module's path, by kind, minus ``ignore``; of one role.

    >>> Where(layers=("features.*",)).wants("features.0.weight", "features.0")
    True
    """

    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = tuple(Kind)
    vectors: bool = False  # biases and normalization layers are left alone unless asked for

    def wants(self, name: str, module: str) -> bool:
        """Whether the globs pick this name; they are matched in full and with case."""

        def hit(pattern: str) -> bool:
            return fnmatchcase(name, pattern) or fnmatchcase(module, pattern)

        return any(map(hit, self.layers)) and not any(map(hit, self.ignore))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ledger: what one step did to one site."""

    method: str
    site: str
    bits_before: float
    bits_after: float
    predicted: float | None = None  # relative squared error of the weight the step replaced
    loss: float | None = None  # measured: increase of the calibration loss with only this site changed
    note: str = ""  # why the site was left as it was, if it was


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training: its number from 1, mean loss, last learning rate, and the validation score if there is one."""

    epoch: int
    loss: float
    learning_rate: float
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of a chain took and gave, for the report."""

    name: str
    settings: dict[str, Any]
    seconds: float
    bits_before: float
    bits_after: float
    loss: float | None
    epochs: tuple[Epoch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """The state between two steps. Never mutated: a method returns another one, sharing the tensors it did not change."""

    model: nn.Module
    reference: nn.Module  # the original: teacher of every recovery and baseline of every error
    task: Task
    seed: int = 0
    where: tuple[Where, ...] = ()  # the restrictions in force: a site must satisfy all of them
    ledger: tuple[Row, ...] = ()
    epochs: tuple[Epoch, ...] = ()  # of the step in progress
    seen: Mapping[str, Seen] = field(default_factory=dict[str, Seen])  # what the calibration data showed of weights, by name
    folder: Path | None = None  # where a training step may leave checkpoints

    def within(self, where: Where) -> Job:
        """The same job, restricted further."""
        return replace(self, where=(*self.where, where))

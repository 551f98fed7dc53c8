"""The plain data of a compression: the user's task, one weight of the model, and the state between two steps."""

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
    """Everything that depends on the user's data. Only ``calibration`` is required; methods that need more say so.

    A batch is ``(inputs, targets)`` or only ``inputs``. Inputs are a tensor, a tuple of positional arguments, or a dictionary
    of keyword arguments of the model's forward. So two inputs without targets are ``((first, second), None)``.

    >>> import torch
    >>> batch = torch.randn(8, 4), torch.randint(2, (8,))
    >>> task = Task(calibration=[batch], train=[batch], loss=torch.nn.functional.cross_entropy, name="example")
    >>> task.evaluate is None
    True

    :param calibration: a few batches, labels not needed; or a function that is given the model and runs it on data.
    :param train: batches ``(inputs, targets)``; iterated once per epoch.
    :param loss: a function of (output, targets) that returns a scalar tensor; lower is better.
    :param evaluate: the score to report, from a model; higher is better. It never influences the compression.
    :param validate: a score on held-out data, higher is better; early stopping uses it.
    :param name: used in messages and reports.
    """

    calibration: Iterable[Any] | Callable[[nn.Module], object]
    train: Iterable[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    validate: Callable[[nn.Module], float] | None = None
    name: str = "task"


class Kind(StrEnum):
    """The kind of layer that a weight belongs to."""

    LINEAR = "linear"
    CONV = "conv"
    EMBEDDING = "embedding"
    OTHER = "other"  # a parameter of some other module, such as a bias or the joint projection of an attention layer


class Role(StrEnum):
    """The meaning of the numbers in a leaf of a form."""

    MATRIX = "matrix"  # a weight, or a factor of a weight, in its own shape
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
    """One parameter of the model.

    ``name`` is its first qualified name; ``aliases`` are its qualified names in other modules that share it (tied weights).
    A plain parameter that does not hold one matrix ``[outputs, inputs, *kernel]`` as it stands has a ``layout``. What only
    calibration data shows (kind and layout) does not count when two sites are compared.

    >>> Site("features.0", "weight", (8, 3, 3, 3), Kind.CONV, Role.MATRIX).name
    'features.0.weight'
    """

    module: str
    parameter: str
    shape: tuple[int, ...]
    kind: Kind = field(compare=False)
    role: Role
    aliases: tuple[str, ...] = ()
    layout: Layout | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The qualified name, such as ``features.0.weight``."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True)
class Where:
    """A selection of sites, used to restrict a method to some of the layers.

    >>> Where(layers=("features.*",)).wants("features.0.weight", "features.0")
    True

    :param layers: globs on the qualified name of a parameter or the path of its module; one must match.
    :param ignore: globs of the same kind; none may match.
    :param kinds: the kinds of layers selected.
    :param vectors: select biases and parameters of normalization layers in place of matrices.
    """

    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = tuple(Kind)
    vectors: bool = False

    def wants(self, name: str, module: str) -> bool:
        """Whether the globs select this parameter. They match the whole string, case-sensitive; kinds are not checked."""

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
    predicted: float | None = None  # relative squared error against the weight that the step replaced
    loss: float | None = None  # measured if the job explains: increase of the calibration loss with only this site changed
    increase: float | None = None  # predicted increase of the loss of a sample, where the method asks for the sensitivity
    note: str = ""  # why the site was left unchanged, if it was


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training: its number (from 1), mean loss, last learning rate, and validation score if there is one."""

    epoch: int
    loss: float
    learning_rate: float
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """The time, sizes and losses of one step of a chain, for the report."""

    name: str
    settings: dict[str, Any]
    seconds: float
    bits_before: float
    bits_after: float
    loss: float | None
    epochs: tuple[Epoch, ...] = ()
    note: str = ""  # why the step changed nothing, if it did not
    renewed: tuple[str, ...] = ()  # normalization layers whose running statistics followed what the step changed
    remarks: tuple[str, ...] = ()  # what the step assumed, predicted and measured


@dataclass(frozen=True, kw_only=True)
class Job:
    """The state between two steps. It is never mutated: a method returns a new job, which shares all unchanged tensors."""

    model: nn.Module
    reference: nn.Module  # the original model: teacher in every recovery, baseline of every error
    task: Task
    seed: int = 0
    where: tuple[Where, ...] = ()  # the restrictions in force: a site must satisfy all of them
    ledger: tuple[Row, ...] = ()
    epochs: tuple[Epoch, ...] = ()  # epochs of the step in progress
    renewed: tuple[str, ...] = ()  # normalization layers whose running statistics the step in progress has moved
    remarks: tuple[str, ...] = ()  # what the step in progress assumed, predicted and measured, for the report
    seen: Mapping[str, Seen] = field(default_factory=dict[str, Seen])  # what the calibration data showed of weights, by name
    folder: Path | None = None  # where training steps may write checkpoints
    explain: bool = False  # measure what each change alone does to the loss, at the cost of a forward for each
    file_bytes: Callable[[nn.Module], int] | None = None  # size of the file of a model, with all that the run will put into it

    def within(self, where: Where) -> Job:
        """The same job, restricted further."""
        return replace(self, where=(*self.where, where))

"""A task by reference: the name of a built-in one, or the path of a Python task file.

A task file defines ``model()``, ``calibration()`` and, when it can, ``train()``, ``loss(output, targets)``,
``evaluate(model)`` and ``validate(model)``, with the meaning of the fields of `kogata.job.Task`.
"""

import difflib
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kogata.errors import DataError, UsageError
from kogata.job import Task
from kogata.tasks.builtin import BUILTIN_TASKS


def open_task(reference: str, seed: int, data: Path | None) -> tuple[nn.Module, Task]:
    """Return the dense model and its task.

    :param reference: the name of a built-in task, or the path of a task file, which ends in ``.py``.
    :param seed: seed of torch's generator while the model and the data are made.
    :param data: folder of the built-in tasks' data; task files do not use it.
    :raises UsageError: there is no such built-in task or file.
    :raises DataError: the data is missing, or the task file cannot be used; the message says where and why.

    >>> from tempfile import TemporaryDirectory
    >>> lines = "import torch", "model = lambda: torch.nn.Linear(4, 2)", "calibration = lambda: [torch.randn(8, 4)]"
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "mine.py").write_text("\\n".join(lines))
    ...     model, task = open_task(f"{folder}/mine.py", 0, None)
    >>> task.name, model
    ('mine', Linear(in_features=4, out_features=2, bias=True))
    """
    if reference.endswith(".py"):
        return _open_file(Path(reference), seed)
    for task in BUILTIN_TASKS:
        if task.name == reference:
            return task.open(seed, data)
    names = [task.name for task in BUILTIN_TASKS]
    close = difflib.get_close_matches(reference, names, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(
        f"There is no built-in task {reference!r}.{hint} Expected one of {', '.join(names)}, or the path of a task "
        "file, which ends in .py."
    )


def open_network(reference: str, seed: int) -> nn.Module:
    """Return the network that a function without arguments in a Python file returns, with weights drawn from the seed.

    :param reference: ``FILE.py:function``.
    :raises UsageError: the reference does not have this form, or there is no such file.
    :raises DataError: the function is missing, fails, or returns something else; the message says where and why.
    """
    name, _, function = reference.rpartition(":")
    if not name.endswith(".py") or not function.isidentifier():
        raise UsageError(f"{reference!r}: expected FILE.py:function, a function that returns the network.")
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file. Expected the path of a Python file with a function {function}().")
    path = path.resolve()
    with torch.random.fork_rng(), _importable(path.parent):
        torch.manual_seed(seed)
        file = _TaskFile(path, _execute(path))
        if file.function(function) is None:
            raise DataError(f"{path}: there is no function {function}() in it that could return the network.")
        network = file.call(function)
    if not isinstance(network, nn.Module):
        raise DataError(f"{path}: {function}() returned {_kind(network)}, expected a torch.nn.Module.")
    return network


def _open_file(path: Path, seed: int) -> tuple[nn.Module, Task]:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file. Expected the path of a Python task file.")
    path = path.resolve()
    with torch.random.fork_rng(), _importable(path.parent):
        torch.manual_seed(seed)
        file = _TaskFile(path, _execute(path))
        model = file.call("model")
        if not isinstance(model, nn.Module):
            raise DataError(f"{path}: model() returned {_kind(model)}, expected a torch.nn.Module.")
        calibration = file.calibration()
        train = file.train() if file.function("train") else None
    task = Task(
        name=path.stem,
        calibration=calibration,
        train=train,
        loss=file.loss if file.function("loss") else None,
        evaluate=file.evaluate if file.function("evaluate") else None,
        validate=file.validate if file.function("validate") else None,
    )
    return model, task


@dataclass(frozen=True)
class _TaskFile:
    """Calls functions of the user's file; any exception there becomes a DataError that names file, function and line."""

    path: Path
    module: ModuleType

    def function(self, name: str) -> Callable[..., Any] | None:
        function = vars(self.module).get(name)
        if function is not None and not callable(function):
            raise DataError(f"{self.path}: {name} is {_kind(function)}, expected a function.")
        return function

    def call(self, name: str, *arguments: object) -> Any:
        function = self.function(name)
        if function is None:
            raise DataError(f"{self.path}: no function {name}(); a task file needs model() and calibration().")
        with _blaming(self.path, f"{name}()"):
            return function(*arguments)

    def calibration(self) -> Any:
        """What calibration() returns: batches, or a function that feeds the model its data."""
        returned = self.call("calibration")
        if callable(returned) and not isinstance(returned, Iterable):
            return partial(self._feed, returned)
        return self._checked("calibration", returned)

    def train(self) -> Iterable[Any]:
        return self._checked("train", self.call("train"))

    def _checked(self, name: str, returned: object) -> Iterable[Any]:
        """The batches that a function returned. If it returned an iterator, the function is called again for every pass."""
        if not isinstance(returned, Iterable):
            raise DataError(f"{self.path}: {name}() returned {_kind(returned)}, expected an iterable of batches.")
        batches = _EveryPass(self, name) if isinstance(returned, Iterator) else returned
        with _blaming(self.path, f"{name}()"):
            empty = next(iter(batches), None) is None
        if empty:
            raise DataError(f"{self.path}: {name}() gave no batch; at least one is needed.")
        return batches

    def _feed(self, forward_loop: Callable[[nn.Module], object], model: nn.Module) -> None:
        with _blaming(self.path, "the function that calibration() returned"):
            forward_loop(model)

    def loss(self, output: Any, targets: Any) -> Tensor:
        loss = self.call("loss", output, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise DataError(f"{self.path}: loss() returned {_kind(loss)}, expected a tensor with one value.")
        return loss

    def evaluate(self, model: nn.Module) -> float:
        return self._score("evaluate", model)

    def validate(self, model: nn.Module) -> float:
        return self._score("validate", model)

    def _score(self, name: str, model: nn.Module) -> float:
        score = self.call(name, model)
        try:
            return float(score)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path}: {name}() returned {_kind(score)}, expected one number.") from error


@dataclass(frozen=True)
class _EveryPass:
    """Calls a generator function anew for every pass, because its iterator lasts for one pass only."""

    file: _TaskFile
    name: str

    def __iter__(self) -> Iterator[Any]:
        with _blaming(self.file.path, f"{self.name}()"):
            yield from self.file.call(self.name)


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    """Let the task file import modules of its folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _execute(path: Path) -> ModuleType:
    name = f"kogata_task_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    with _blaming(path, "the file itself, while it was loaded"):
        SourceFileLoader(name, str(path)).exec_module(module)
    return module


@contextmanager
def _blaming(path: Path, where: str) -> Generator[None, None, None]:
    try:
        yield
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        place = f"{path}:{line}" if line else str(path)
        raise DataError(f"{place}: {where} failed with {type(error).__name__}: {error}") from error


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"

"""The calibration batches of a task, from an iterable or from the user's own loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.job import Task
from kogata.network.batch import evaluating, move, split
from kogata.network.nesting import leaves


def first_batch(model: nn.Module, task: Task) -> tuple[Any, Any]:
    """``(inputs, targets)`` of the first calibration batch. Raises DataError when there is none."""
    found = next(first_batches(model, task, 1), None)
    if found is None:
        what = "calibration function never calls the model" if callable(task.calibration) else "calibration data is empty"
        raise DataError(f"task {task.name!r}: its {what}; give at least one batch.")
    return found


def first_batches(model: nn.Module, task: Task, count: int) -> Iterator[tuple[Any, Any]]:
    """``(inputs, targets)`` of the first ``count`` calibration batches. The user's own loop is stopped after as many calls."""
    return _calls(model, task, count) if callable(task.calibration) else islice(calibration_batches(model, task), count)


def calibration_batches(model: nn.Module, task: Task) -> Iterator[tuple[Any, Any]]:
    """``(inputs, targets)`` of every calibration batch, on the model's device.

    A ``calibration`` that feeds the model itself is run once, to see what it feeds; it has no targets.
    """
    if callable(task.calibration):
        return _calls(model, task, None)
    return (move(split(batch), _device(model)) for batch in task.calibration)


def _calls(model: nn.Module, task: Task, most: int | None) -> Iterator[tuple[Any, None]]:
    """What the user's own loop passes to the model, in at most so many calls."""
    caught: list[Any] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(_kept(_inputs(model, args, kwargs)))
        if len(caught) == most:
            raise _Stop

    handle = model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with evaluating(model):
            cast("Any", task.calibration)(model)
    except _Stop:
        pass
    finally:
        handle.remove()
    return iter([(inputs, None) for inputs in caught])


def _inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The inputs of a call: a tuple of positions, or keywords. Raises DataError for a call that is neither."""
    if not kwargs:
        return args
    if not args:
        return kwargs
    parameters = inspect.signature(model.forward).parameters.values()
    names = [part.name for part in parameters if part.kind is part.POSITIONAL_OR_KEYWORD]
    if len(names) < len(args):
        raise DataError(
            f"calibration: {type(model).__name__} is called with {len(args)} positional and {len(kwargs)} keyword arguments, "
            "but its forward names fewer parameters; call it with keywords alone, or with positions alone."
        )
    return dict(zip(names, args, strict=False)) | kwargs


def _kept(inputs: Any) -> Any:
    """A copy of inputs as they are now: the caller's loop may write the next batch into the same tensors, or extend a cache."""
    memo = {id(part): part.detach().clone() for part in leaves(inputs) if isinstance(part, Tensor)}  # deepcopy refuses results
    return copy.deepcopy(inputs, cast("dict[int, Any]", memo))


class _Stop(Exception):  # noqa: N818 - not an error: it ends the user's loop early
    """Raised inside the user's calibration function."""


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

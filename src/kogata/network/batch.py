"""What a batch is, how a model is called on it, and how two outputs are compared: for any nesting of tensors."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.errors import DataError
from kogata.network.nesting import leaves, mapped


def split(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a batch; targets are None when the batch is inputs alone."""
    if isinstance(batch, tuple | list) and len(cast("Sequence[Any]", batch)) == 2:
        inputs, targets = cast("Sequence[Any]", batch)
        return inputs, targets
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a mapping is passed as keywords, a tuple or list as positions, anything else as one argument.

    Objects that are no tensors, such as a cache that the model extends, are copied for each call: a batch may be used again.
    """
    inputs = mapped(_own, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*cast("Sequence[Any]", inputs))
    return model(inputs)


def _own(part: Any) -> Any:
    if part is None or isinstance(part, Tensor | bool | int | float | str | nn.Module):
        return part
    try:
        return copy.deepcopy(part)
    except Exception:  # whatever the object raises; it then cannot be kept from change
        return part


def take(value: Any, rows: int) -> Any:
    """The first ``rows`` of every tensor in a nesting."""
    return mapped(lambda part: part[:rows] if isinstance(part, Tensor) and part.ndim else part, value)


def count_of(batches: Iterable[Any]) -> int | None:
    """How many batches there are, where they can tell. A DataLoader has a length, but fails to give that of a stream."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:
        return None


def row(value: Any, n: int) -> Any:
    """Row ``n`` of every tensor in a nesting, as a batch of one."""
    return part(value, n, n + 1)


def part(value: Any, start: int, stop: int) -> Any:
    """The rows from ``start`` to ``stop`` of every tensor in a nesting; a tensor with one row, which is broadcast, stays."""
    return mapped(lambda each: each[start:stop] if isinstance(each, Tensor) and each.ndim and len(each) > 1 else each, value)


def length(value: Any) -> int:
    """The rows of the first tensor with more than one in a nesting; 1 when there is none."""
    rows = (len(part) for part in leaves(value) if isinstance(part, Tensor) and part.ndim)
    return next((count for count in rows if count > 1), 1)


def move(value: Any, device: torch.device) -> Any:
    """The same nesting with every tensor on ``device``."""
    return mapped(lambda part: part.to(device, non_blocking=True) if isinstance(part, Tensor) else part, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every float tensor of a nested output, in order."""
    return (part for part in leaves(value) if isinstance(part, Tensor) and part.is_floating_point())


def output_error(output: Any, reference: Any) -> Tensor:
    """‖output − reference‖² / ‖reference‖² over all float tensors of two outputs of the same structure.

    Raises DataError when they differ in structure or shape.
    """
    found, wanted = list(tensors(output)), list(tensors(reference))
    if not wanted:
        raise DataError("model: its output holds no float tensor, so there is nothing that must stay as it is.")
    if [t.shape for t in found] != [t.shape for t in wanted]:
        raise DataError(
            f"distillation: the outputs differ: shapes {[tuple(t.shape) for t in found]} against "
            f"{[tuple(t.shape) for t in wanted]} of the original model."
        )
    error = torch.stack([(a - b).float().square().sum() for a, b in zip(found, wanted, strict=True)]).sum()
    return error / torch.stack([b.float().square().sum() for b in wanted]).sum().clamp_min(1e-30)


@contextmanager
def evaluating(model: nn.Module) -> Generator[nn.Module, None, None]:
    """The model in evaluation mode and without gradients; modes are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode

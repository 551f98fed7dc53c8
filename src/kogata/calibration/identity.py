"""Digests of a task's data, by which a resumed run knows the data that it began with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Iterable, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kogata.calibration.batches import first_batches
from kogata.job import Job
from kogata.network.batch import count_of

BATCHES = 2  # looked at


def data_digests(job: Job) -> dict[str, str]:
    """Digests of the calibration data and of the training data, from their lengths and the content of a few batches.

    Data that comes out otherwise each time although the random seeds are the same is known by shapes and dtypes alone.
    """
    task = job.task
    found = {"calibration data": task.calibration, "training data": task.train}
    return {name: "" if data is None else _digest(data, job) for name, data in found.items()}


def _digest(data: Any, job: Job) -> str:
    once, again = _looked(data, job), _looked(data, job)
    return _hashed(once, content=True) if _hashed(once, content=True) == _hashed(again, content=True) else _hashed(once)


def _looked(data: Any, job: Job) -> list[Any]:
    """The length where there is one, and a few entries: of the data set itself rather than of an order drawn anew each time."""
    with _seeded(job.seed):
        if callable(data):
            return list(first_batches(job.reference, job.task, BATCHES))
        size = count_of(cast("Iterable[Any]", data))
        entries = _indexed(data)
        if entries is None:
            return [size, *islice(cast("Iterable[Any]", data), BATCHES)]
        count = len(entries)
        return [size, count, *(entries[place] for place in sorted({0, count // 2, count - 1}) if count)]


def _indexed(data: object) -> Any:
    """What can be read at any place without drawing an order; None where there is no such thing."""
    if isinstance(data, DataLoader):
        entries = cast("Any", data).dataset
        return entries if isinstance(entries, Sized) and not isinstance(entries, IterableDataset) else None
    return cast("Any", data) if isinstance(data, Sequence) else None


@contextmanager
def _seeded(seed: int) -> Generator[None, None, None]:
    """All random generators as they are at this seed while the body runs, and as they were afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _hashed(value: Any, *, content: bool = False) -> str:
    digest = hashlib.sha256()
    for part in _parts(value, content):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, content: bool) -> Generator[Any, None, None]:
    """The bytes that tell a nesting of tensors, arrays, numbers and texts from another."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        if content and value.numel() and not value.is_sparse and not value.is_quantized:
            yield value.contiguous().view(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        yield f"{array.dtype}{array.shape}".encode() + (array.tobytes() if content and array.dtype != object else b"")
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield str(key).encode()
            yield from _parts(part, content)
    elif isinstance(value, tuple | list):
        yield f"{len(cast('Sequence[Any]', value))}".encode()
        for part in cast("Sequence[Any]", value):
            yield from _parts(part, content)
    elif content and isinstance(value, str | int | float | bool | None):
        yield repr(value).encode()
    else:
        yield type(value).__name__.encode()

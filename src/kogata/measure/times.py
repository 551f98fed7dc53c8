"""The time of each layer of a model in PyTorch, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from kogata.network.batch import call, evaluating

_RUNS = 20


def layer_times(models: Mapping[str, nn.Module], paths: set[str], sample: Any) -> dict[str, dict[str, float]]:
    """The median time in milliseconds of the module at each path, for several models measured in turns on one sample."""
    spent: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    handles: list[Any] = []
    for name, model in models.items():
        for path in paths:
            module, started = model.get_submodule(path), [0]
            into = spent[name].setdefault(path, [])
            handles.append(module.register_forward_pre_hook(_starter(started)))
            handles.append(module.register_forward_hook(_stopper(started, into)))
    try:
        for _ in range(_RUNS):
            for model in models.values():
                with evaluating(model):
                    call(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: {path: float(np.median(values[1:])) for path, values in paths_.items() if len(values) > 1}
        for name, paths_ in spent.items()
    }  # fmt: skip


def _starter(started: list[int]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        started[0] = time.perf_counter_ns()

    return hook


def _stopper(started: list[int], into: list[float]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        into.append((time.perf_counter_ns() - started[0]) / 1e6)

    return hook

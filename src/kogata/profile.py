"""What each layer of a model costs: multiply-accumulates of one sample, and milliseconds in PyTorch eager."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from kogata import surgery
from kogata.batch import call, take
from kogata.calibrate import evaluating
from kogata.job import Kind, Site

_RUNS = 20


def macs(model: nn.Module, inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of each linear and convolutional site for one sample, by the site's name.

    An output entry costs one product for each weight of its row. Layers that the forward pass calls several times count each
    time; layers it reaches in other ways than by calling them are left out.
    """
    found: dict[str, int] = {}
    handles: list[Any] = []

    def count(site: Site) -> Callable[..., None]:
        row = int(np.prod(site.shape[1:]))

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[site.name] = found.get(site.name, 0) + output.numel() * row

        return hook

    for site in surgery.sites(model):
        if site.kind in (Kind.LINEAR, Kind.CONV):
            handles.append(model.get_submodule(site.module).register_forward_hook(count(site)))
    try:
        with evaluating(model):
            call(model, take(inputs, 1))
    finally:
        for handle in handles:
            handle.remove()
    return found


def times(models: Mapping[str, nn.Module], paths: set[str], inputs: Any) -> dict[str, dict[str, float]]:
    """Median milliseconds of the module at each path, for each of several models measured in turn on one sample."""
    sample = take(inputs, 1)
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

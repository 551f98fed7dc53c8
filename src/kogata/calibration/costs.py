"""Multiply-accumulates of each layer for one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from kogata.job import Kind, Site
from kogata.network.batch import call, evaluating, take
from kogata.network.sites import sites_of


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

    for site in sites_of(model):
        if site.kind in (Kind.LINEAR, Kind.CONV):
            handles.append(model.get_submodule(site.module).register_forward_hook(count(site)))
    try:
        with evaluating(model):
            call(model, take(inputs, 1))
    finally:
        for handle in handles:
            handle.remove()
    return found

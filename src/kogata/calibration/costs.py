"""Multiply-accumulates of each layer for one sample."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from torch import Tensor, nn

from kogata.calibration.watch import Watch
from kogata.forms import Role
from kogata.job import Kind
from kogata.network.batch import evaluating
from kogata.network.placement import Placement
from kogata.network.rows import first_rows
from kogata.network.sites import sites_of


def macs(model: nn.Module, inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of each weight that an operation multiplies, for one sample, by the site's name.

    If ``inputs`` has no rows that are samples (see :func:`first_rows`), they are those of all of it.

    An output entry costs one product for each weight of its row. Weights that the forward pass multiplies several times count
    each time; those whose products cannot be seen are left out.

    >>> import torch
    >>> macs(nn.Linear(8, 4), torch.ones(3, 8))
    {'weight': 32}
    """
    found, sample = Counter[str](), first_rows(model, inputs)

    def rows(name: str, placement: Placement) -> None:
        if placement.use.kind is not Kind.CONV:  # whose rows would have to be unfolded
            for start, stop, x_GNI in placement.rows():
                found[name] += (stop - start) * x_GNI.shape[1] * x_GNI.shape[2]

    def places(name: str, placement: Placement, output: Tensor) -> None:
        if placement.use.kind is Kind.CONV:
            found[name] += output.numel() * math.prod(placement.layout.shape[1:])

    watch = Watch(model, [site for site in sites_of(model) if site.role is Role.MATRIX], rows)
    watch.result = places
    with evaluating(model), watch.listening(lambda _, look: look()):
        watch.run(sample)
    return dict(found)

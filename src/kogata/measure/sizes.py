"""The bytes of a model or of a file, layer by layer, compared with their entropy.

The entropy of a model's floats is computed separately for each byte position under a static zero-order model. It estimates what
a generic lossless coder could reach. The entropy of a file is that of its planes. Both ignore the cost of storing the
histogram, so coders cannot reach the entropy of a layer with few weights.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.calibration.costs import macs
from kogata.coding.plane import entropy_bits
from kogata.forms import Role
from kogata.network.sites import sites_of
from kogata.storage.layout import Artifact, Stored


@dataclass(frozen=True, kw_only=True)
class ModelLayer:
    """One matrix of a model in memory."""

    site: str
    aliases: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None  # multiply-adds for one sample; None for layers without a matrix product
    bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float


@dataclass(frozen=True, kw_only=True)
class FileLayer:
    """One matrix of a file: its form in words, the number of stored entries, and the planes that hold them."""

    site: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    form: str
    stored: int
    bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float
    planes: tuple[Stored, ...]


def of_model(model: nn.Module, inputs: Any) -> tuple[ModelLayer, ...]:
    """Every matrix of a model. ``inputs`` are those of one batch, for counting multiply-adds."""
    costs = macs(model, inputs)
    found: list[ModelLayer] = []
    for site in sites_of(model):
        if site.role is not Role.MATRIX:
            continue
        weight = cast("Tensor", getattr(model.get_submodule(site.module), site.parameter)).detach()
        found.append(ModelLayer(
            site=site.name, aliases=site.aliases, kind=site.kind, shape=site.shape, parameters=weight.numel(),
            macs=costs.get(site.name), bytes=weight.nbytes, bits_per_weight=8.0 * weight.itemsize,
            entropy_bits_per_weight=byte_entropy(weight) / max(weight.numel(), 1),
        ))  # fmt: skip
    return tuple(found)


def of_file(artifact: Artifact) -> tuple[FileLayer, ...]:
    """Every matrix of a file; the model's class is not needed."""
    stored = defaultdict[str, list[Stored]](list)
    for plane in artifact.packed.planes:
        stored[plane.site].append(plane)
    found: list[FileLayer] = []
    for (name, *aliases), form in artifact.forms.items():
        if len(form.shape) < 2:
            continue
        planes = tuple(stored[name])
        size, parameters = sum(plane.bytes for plane in planes), max(form.shape.numel(), 1)
        found.append(FileLayer(
            site=name, aliases=tuple(aliases), shape=tuple(form.shape), parameters=form.shape.numel(),
            form=form.describe(), stored=form.kept(), bytes=size, bits_per_weight=8 * size / parameters,
            entropy_bits_per_weight=sum(plane.entropy_bits for plane in planes) / parameters, planes=planes,
        ))  # fmt: skip
    return tuple(found)


def byte_entropy(values: Tensor) -> float:
    """The entropy in bits of a float tensor, with a static zero-order model for each byte position.

    >>> byte_entropy(torch.tensor([1.0, -1.0]))  # 3F800000 and BF800000 differ in one of four bytes
    2.0
    """
    bytes_NB = values.cpu().contiguous().view(-1, 1).view(torch.uint8).numpy()
    return sum(entropy_bits(np.bincount(column, minlength=256)) for column in bytes_NB.T)

"""Where the bytes of a model or of a file lie, layer by layer, and how many of them are needed.

The entropy of a model's floats is that of their bytes, each position of the byte apart, under a static zero-order
model: what a coder that knows nothing of the layer could reach without changing a single weight. That of a file is its
planes' own. Both take the histogram as known and free, so that of a layer of few weights is out of reach.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.calibration.costs import macs
from kogata.coding.plane import entropy_bits
from kogata.forms import Role
from kogata.network import surgery
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
    macs: int | None  # of one sample; None for layers that do not multiply a matrix
    bytes: int
    bits_per_weight: float
    entropy_bits_per_weight: float


@dataclass(frozen=True, kw_only=True)
class FileLayer:
    """One matrix of a file: its form in words, how many of its entries are stored, and the planes that hold them."""

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
    """Every matrix of a model; ``inputs`` are those of one batch, for the multiply-accumulates."""
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
    """Every matrix of a file, without the model's class."""
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
    """Bits of a float tensor when each byte position is coded by its own static zero-order model.

    >>> byte_entropy(torch.tensor([1.0, -1.0]))  # 3F800000 and BF800000: one byte of four tells them apart
    2.0
    """
    bytes_NB = values.cpu().contiguous().view(-1, 1).view(torch.uint8).numpy()
    return sum(entropy_bits(np.bincount(column, minlength=256)) for column in bytes_NB.T)


_SAFETENSORS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def dense_bytes(model: nn.Module) -> int:
    """Bytes of the same model as a plain safetensors file in its own dtypes: what a compression is compared with."""
    header, offset, seen = dict[str, Any](), 0, set[tuple[int, torch.Size]]()
    for name, tensor in sorted(cast("Mapping[str, Tensor]", surgery.plain(model).state_dict()).items()):
        if (tensor.data_ptr(), tensor.shape) in seen and tensor.numel():
            continue  # tied weights are stored once
        seen.add((tensor.data_ptr(), tensor.shape))
        size = tensor.numel() * tensor.itemsize
        dtype = _SAFETENSORS.get(tensor.dtype, "F32")
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset

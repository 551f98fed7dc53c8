"""A digest of a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name. Extra state of modules is left out, for it may be any Python object."""
    digest = hashlib.sha256()
    for name, tensor in cast("Mapping[str, Any]", model.state_dict()).items():
        if not isinstance(tensor, Tensor):
            continue
        digest.update(name.encode() + str(tensor.dtype).encode())
        if tensor.numel():
            values: Any = tensor.detach().cpu().contiguous().view(-1).view(dtype=torch.uint8).numpy()
            digest.update(values)
    return digest.hexdigest()

"""A digest of a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in cast("Mapping[str, Any]", model.state_dict()).items():
        digest.update(name.encode() + str(tensor.dtype).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(dtype=torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()

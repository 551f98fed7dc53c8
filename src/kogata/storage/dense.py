"""The bytes of a model whose weights are all stored dense: the baseline of a compression."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.network import surgery

_SAFETENSORS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def dense_bytes(model: nn.Module) -> int:
    """The bytes of the model as a safetensors file with dense weights in their dtypes: the baseline of a compression."""
    header, offset, seen = dict[str, Any](), 0, set[tuple[int, torch.Size]]()
    state = cast("Mapping[str, Any]", surgery.densify(surgery.clone(model)).state_dict())
    for name, tensor in sorted(state.items()):
        if not isinstance(tensor, Tensor):
            continue  # extra state of a module, which safetensors cannot hold
        if (tensor.data_ptr(), tensor.shape) in seen and tensor.numel():
            continue  # tied weights are stored once
        seen.add((tensor.data_ptr(), tensor.shape))
        size = tensor.numel() * tensor.itemsize
        dtype = _SAFETENSORS.get(tensor.dtype, "F32")
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + offset

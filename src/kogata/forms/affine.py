"""Affine: uniform quantization. Entries are scale · (code − zero point), with one scale for each group of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form, index_dtype, passes
from kogata.job import Role

MAX_BITS = 16


class Affine(Form):
    """Uniform quantization of a tensor whose rows ``[shape[0], -1]`` are cut into groups; a vector is one row.

    ``code`` has the shape of the tensor; ``scale`` and ``zero`` are ``[rows, groups]``, or ``[1, groups]`` where all rows share
    them. The last group of a row may be shorter. ``code`` and ``zero`` are in ``[0, 2**bits)``, ``bits`` at most ``MAX_BITS``,
    and stored in the narrowest integer dtype that holds them. The scales are trainable, the codes are not.

    >>> import torch
    >>> from kogata.forms import Affine
    >>> weight = torch.tensor([[0.0, 0.26, 0.5, 0.75]])
    >>> Affine.of(weight, torch.tensor([[0.25]]), torch.tensor([[0.0]]), bits=2, group=4).dense().detach()
    tensor([[0.0000, 0.2500, 0.5000, 0.7500]])
    """

    TAG = "affine"

    code: Tensor
    zero: Tensor
    scale: Form

    def __init__(self, code: Tensor, scale: Form, zero: Tensor, *, bits: int, group: int) -> None:
        super().__init__()
        self.shape, self.bits, self.group = code.shape, bits, group
        self.register_buffer("code", code)
        self.register_buffer("zero", zero)
        self.scale = scale

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, zero: Tensor, *, bits: int, group: int) -> Self:
        """Round ``weight`` to the nearest code for the given ``scale`` and ``zero``, both ``[rows, groups]``."""
        code = grouped(as_rows(weight), scale, zero, group, lambda rows, s, z: rows.div(s).round_().add_(z))
        codes = code.clamp_(0, 2**bits - 1).to(index_dtype(2**bits)).reshape(weight.shape)
        return cls(codes, Dense(scale, Role.SCALE), zero.to(codes.dtype), bits=bits, group=group)

    def dense(self) -> Tensor:
        """scale · (code − zero), of ``shape``."""
        scale = self.scale.dense()
        code, zero = as_rows(self.code).to(scale.dtype), self.zero.to(scale.dtype)
        return grouped(code, scale, zero, self.group, _affine).reshape(self.shape)

    def planes(self) -> dict[str, Plane]:
        """Codes and zero points, both under an alphabet of 2**bits."""
        alphabet = 2**self.bits
        return {
            "code": Plane.symbols(self.code.cpu().numpy(), alphabet),
            "zero": Plane.symbols(self.zero.cpu().numpy(), alphabet),
        }

    def header(self) -> dict[str, Any]:
        """Bits and group size."""
        return {"bits": self.bits, "group": self.group}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Codes in the dtype of the scales, and the products."""
        return passes(planes["code"].size, parts, extra=16)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when scales do not fit the rows and groups."""
        bits, group = header["bits"], header["group"]
        code, zero, scale = torch.from_numpy(planes["code"]), torch.from_numpy(planes["zero"]), parts["scale"]
        if not (isinstance(bits, int) and 1 <= bits <= MAX_BITS and isinstance(group, int) and group >= 1):
            raise ValueError(f"bits {bits!r} and group {group!r}")
        rows, columns = as_rows(code).shape
        groups = -(-columns // group)
        if tuple(scale.shape) != tuple(zero.shape) or tuple(scale.shape) not in ((rows, groups), (1, groups)):
            found = f"scales {tuple(scale.shape)}, zero points {tuple(zero.shape)}"
            raise ValueError(f"{found}, expected {(rows, groups)} or {(1, groups)} of both")
        if any(part.numel() and not 0 <= int(part.min()) <= int(part.max()) < 2**bits for part in (code, zero)):
            raise ValueError(f"codes or zero points outside of {bits} bits")
        dtype = index_dtype(2**bits)
        return cls(code.to(dtype), scale, zero.to(dtype), bits=bits, group=group)


def as_rows(tensor: Tensor) -> Tensor:
    """``[shape[0], -1]``; a vector is one row."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(1)


def _affine(code: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale · (code − zero), computed in place in ``code`` unless autograd records the operation."""
    return (code - zero) * scale if torch.is_grad_enabled() else code.sub_(zero).mul_(scale)


def grouped(
    rows: Tensor, scale: Tensor, zero: Tensor, group: int, formula: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """``formula(rows, scale, zero)``, applied to each group of ``rows`` (``[rows, columns]``) with the group's scale and zero.

    Scales are broadcast over whole groups without a copy. A shorter group at the end of each row is computed separately.
    """
    count, columns = rows.shape
    if not columns:
        return rows.to(scale.dtype)
    whole = columns // group
    parts = list[Tensor]()
    if whole:
        blocks = rows[:, : whole * group].reshape(count, whole, group)
        parts.append(formula(blocks, scale[:, :whole, None], zero[:, :whole, None]).reshape(count, -1))
    if whole * group < columns:
        parts.append(formula(rows[:, whole * group :], scale[:, whole:], zero[:, whole:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

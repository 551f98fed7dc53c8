"""Stacked: the filters of a convolution in several parts with kernels of different sizes, centred on each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import Dense, Form, index_dtype, passes
from kogata.job import Role

MAX_ENTRIES = 1 << 31  # largest number of entries of a weight that a file may ask for; guards against damaged files


class Stacked(Form):
    """A weight ``[outputs, inputs, *kernel]``. Filter o is the next unused filter of part ``member[o]``, padded with zeros.

    Part p is ``[outputs of p, inputs, *kernel of p]``. Its kernel is smaller than the full one by an even number on each axis.
    ``member`` (integers, ``[outputs]``) is fixed, the parts are trainable.

    >>> import torch
    >>> from kogata.forms import Stacked
    >>> form = Stacked.of(torch.tensor([0, 1, 1]), [torch.randn(1, 4, 3, 3), torch.randn(2, 4, 1, 1)], (3, 3))
    >>> form.dense().shape, form.kept()
    (torch.Size([3, 4, 3, 3]), 44)
    """

    TAG = "stacked"

    member: Tensor
    filters: nn.ModuleList

    def __init__(self, member_O: Tensor, filters: Sequence[Form], kernel: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size((len(member_O), filters[0].shape[1], *kernel))
        self.register_buffer("member", member_O)
        self.filters = nn.ModuleList(filters)

    @classmethod
    def of(cls, member_O: Tensor, filters: Sequence[Tensor], kernel: Sequence[int]) -> Self:
        """A form with each part as a trainable leaf."""
        parts = [Dense(part.contiguous(), Role.MATRIX) for part in filters]
        return cls(member_O.to(index_dtype(len(parts))), parts, kernel)

    def order(self) -> Tensor:
        """The index of each output's filter in the concatenation of all parts, int64 ``[outputs]``."""
        return torch.argsort(torch.argsort(self.member.long(), stable=True))

    def dense(self) -> Tensor:
        """All filters, padded to the full kernel, in the order of the outputs."""
        kernel = self.shape[2:]
        parts = [cast("Form", part).dense() for part in self.filters]
        sides = [[(whole - own) // 2 for whole, own in zip(kernel, part.shape[2:], strict=True)] for part in parts]
        padded = [
            functional.pad(part, [side for side in reversed(found) for _ in range(2)])
            for part, found in zip(parts, sides, strict=True)
        ]
        return torch.cat(padded).index_select(0, self.order())

    def kept(self) -> int:
        """The number of entries of all parts."""
        return sum(part.kept() for part in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """The part of each output."""
        return {"member": Plane.symbols(self.member.cpu().numpy(), len(self.filters))}

    def header(self) -> dict[str, Any]:
        """The size of the full kernel."""
        return {"kernel": list(self.shape[2:])}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The parts with zeros about them, one after another and in the order of the outputs."""
        inputs = max((size for part in parts.values() for size in part.shape[1:2]), default=0)
        return passes(planes["member"].size * inputs * math.prod(checked_shape(header["kernel"])), parts, extra=16)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the parts do not fit the kernel, each other, or the outputs."""
        kernel, filters = checked_shape(header["kernel"], 1), list(parts.values())
        member_O = planes["member"]
        if member_O.ndim != 1 or not member_O.size or len({part.shape[1:2] for part in filters}) != 1:
            raise ValueError(f"parts of shapes {[tuple(part.shape) for part in filters]} for outputs {member_O.shape}")
        for part in filters:
            spare = [whole - own for whole, own in zip(kernel, part.shape[2:], strict=True)]
            if not spare or min(spare) < 0 or any(side % 2 for side in spare):
                raise ValueError(f"a part of shape {tuple(part.shape)} about the centre of a kernel {kernel}")
        if len(member_O) * filters[0].shape[1] * math.prod(kernel) > MAX_ENTRIES:
            raise ValueError(f"{len(member_O)} filters of a kernel {kernel}, expected at most {MAX_ENTRIES} entries")
        if np.bincount(member_O, minlength=len(filters)).tolist() != [part.shape[0] for part in filters]:
            raise ValueError("the number of outputs of each part is not the number of its filters")
        return cls(torch.from_numpy(member_O.astype(np.int64)).to(index_dtype(len(filters))), filters, kernel)

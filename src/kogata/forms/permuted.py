"""Permuted: a form with its rows in another order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.base import Form, index_dtype, passes


class Permuted(Form):
    """Row o is row ``order[o]`` of ``part``. With it, filters that share a base need not be consecutive in the layer.

    >>> import torch
    >>> from kogata.forms import Dense, Permuted, Role
    >>> Permuted(torch.tensor([2, 0, 1]), Dense(torch.eye(3), Role.MATRIX)).dense().detach()
    tensor([[0., 0., 1.],
            [1., 0., 0.],
            [0., 1., 0.]])
    """

    TAG = "permuted"

    order: Tensor
    part: Form

    def __init__(self, order: Tensor, part: Form) -> None:
        super().__init__()
        self.shape = part.shape
        self.register_buffer("order", order.to(index_dtype(len(order))))
        self.part = part

    def dense(self) -> Tensor:
        """The rows of the part in the new order."""
        return self.part.dense().index_select(0, self.order.to(torch.int32))

    def kept(self) -> int:
        """The number of entries that the part stores."""
        return self.part.kept()

    def planes(self) -> dict[str, Plane]:
        """The permutation of the rows."""
        return {"order": Plane.symbols(self.order.cpu().numpy(), len(self.order))}

    def header(self) -> dict[str, Any]:
        """Empty: the part has the shape."""
        return {}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The sorted order, and the rows in their new one."""
        found, rows = passes(parts["part"].shape.numel(), parts), planes["order"].size
        return found._replace(scratch=found.scratch + 24 * rows, work=found.work + 100 * rows)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the order is not a permutation of the part's rows."""
        order, part = planes["order"], parts["part"]
        if not np.array_equal(np.sort(order), np.arange(part.shape[0])):
            raise ValueError(f"the order of shape {order.shape} is no permutation of {part.shape[0]} rows")
        return cls(torch.from_numpy(order.astype(np.int32)), part)

"""Permuted: the rows of a weight in another order than the one in which a part regenerates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.plane import Plane
from kogata.forms.base import Form, index_dtype


class Permuted(Form):
    """Row o is row ``order[o]`` of ``part``: a layer's filters keep their places, whichever of them are tied to each other."""

    TAG = "permuted"

    order: Tensor
    part: Form

    def __init__(self, order: Tensor, part: Form) -> None:
        super().__init__()
        self.shape = part.shape
        self.register_buffer("order", order.to(index_dtype(len(order))))
        self.part = part

    def dense(self) -> Tensor:
        """The part's rows, in order."""
        return self.part.dense().index_select(0, self.order.to(torch.int32))

    def kept(self) -> int:
        """The numbers of the part."""
        return self.part.kept()

    def planes(self) -> dict[str, Plane]:
        """The order."""
        return {"order": Plane.symbols(self.order.cpu().numpy(), len(self.order))}

    def header(self) -> dict[str, Any]:
        """Nothing: the part knows the shape."""
        return {}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the order is no permutation of the part's rows."""
        order, part = planes["order"], parts["part"]
        if not np.array_equal(np.sort(order), np.arange(part.shape[0])):
            raise ValueError(f"the order of shape {order.shape} is no permutation of {part.shape[0]} rows")
        return cls(torch.from_numpy(order.astype(np.int32)), part)

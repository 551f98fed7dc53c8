"""Codebook: every entry is one of k shared values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form, index_dtype, passes
from kogata.job import Role


class Codebook(Form):
    """Entry i is ``table[index[i]]``: ``index`` (integers, the shape of the tensor) is fixed, ``table`` (``[k]``) is trainable.

    The gradient of a centroid is the sum of the gradients of its members (Han, Mao, Dally, arXiv 1510.00149, equation 3), which
    is what autograd computes for indexing.

    >>> import torch
    >>> from kogata.forms import Codebook
    >>> Codebook.of(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.5, -1.0])).dense().detach()
    tensor([[ 0.5000, -1.0000],
            [-1.0000,  0.5000]])
    """

    TAG = "codebook"

    index: Tensor
    table: Form

    def __init__(self, index: Tensor, table: Form) -> None:
        super().__init__()
        self.shape = index.shape
        self.register_buffer("index", index)
        self.table = table

    @classmethod
    def of(cls, index: Tensor, table: Tensor) -> Self:
        """A codebook with ``index`` stored in the narrowest integer dtype and ``table`` as a trainable leaf."""
        return cls(index.to(index_dtype(len(table))), Dense(table, Role.TABLE))

    def dense(self) -> Tensor:
        """The centroid of each entry."""
        return self.table.dense().index_select(0, self.index.flatten().to(torch.int32)).reshape(self.shape)

    def planes(self) -> dict[str, Plane]:
        """The indices, under an alphabet of k."""
        return {"index": Plane.symbols(self.index.cpu().numpy(), self.table.shape[0])}

    def header(self) -> dict[str, Any]:
        """Empty: the table has the number of centroids."""
        return {}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Indices as 32-bit integers, and the entries they pick."""
        return passes(planes["index"].size, parts, extra=16)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when an index points past the table."""
        index, table = torch.from_numpy(planes["index"].astype(np.int32)), parts["table"]
        least, most = (int(index.min()), int(index.max())) if index.numel() else (0, -1)
        if len(table.shape) != 1 or least < 0 or most >= table.shape[0]:
            raise ValueError(f"indices {least} to {most} into a table of shape {tuple(table.shape)}")
        return cls(index.to(index_dtype(table.shape[0])), table)

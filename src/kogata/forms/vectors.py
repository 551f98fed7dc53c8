"""Vectors: rows are cut into short sub-vectors, each one of k shared vectors (vector quantization)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.forms.base import Dense, Form, index_dtype, passes
from kogata.forms.product import MAX_ENTRIES
from kogata.job import Role


class Vectors(Form):
    """The rows of a matrix ``[O, I]`` (all axes but the first flattened), cut into m sub-vectors of length d.

    Sub-vector s of row o is ``table[s, index[o, s]]``. ``index`` (integers, ``[O, m]``) is fixed; ``table`` (``[m, k, d]``, one
    codebook for each position in the row) is trainable. Where d does not divide I, the last sub-vectors are cropped.

    >>> import torch
    >>> from kogata.forms import Vectors
    >>> table = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> Vectors.of(torch.tensor([[0], [1], [0]]), table, (3, 2)).dense().detach()
    tensor([[1., 2.],
            [3., 4.],
            [1., 2.]])
    """

    TAG = "vectors"

    index: Tensor
    table: Form

    def __init__(self, index: Tensor, table: Form, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.register_buffer("index", index)
        self.table = table

    @classmethod
    def of(cls, index: Tensor, table: Tensor, shape: Sequence[int]) -> Self:
        """A form with ``index`` stored in the narrowest integer dtype and ``table`` as a trainable leaf."""
        return cls(index.to(index_dtype(table.shape[1])), Dense(table.contiguous(), Role.TABLE), shape)

    def dense(self) -> Tensor:
        """The sub-vectors of each row, concatenated, of ``shape``."""
        spaces, clusters, _ = self.table.shape
        first_S = torch.arange(0, spaces * clusters, clusters, dtype=torch.int32, device=self.index.device)
        entry_OS = self.index.to(torch.int32) + first_S
        rows_OI = self.table.dense().flatten(0, 1).index_select(0, entry_OS.flatten()).reshape(self.shape[0], -1)
        return rows_OI[:, : math.prod(self.shape[1:])].reshape(self.shape)

    def planes(self) -> dict[str, Plane]:
        """The indices, under an alphabet of k."""
        return {"index": Plane.symbols(self.index.cpu().numpy(), self.table.shape[1])}

    def header(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Indices as 32-bit integers, and all sub-vectors, before the last ones are cropped."""
        return passes(planes["index"].size * max(1, *parts["table"].shape[2:]), parts, extra=16)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the indices, the table and the shape do not fit."""
        shape, table = checked_shape(header["shape"], 1), parts["table"]
        index = torch.from_numpy(planes["index"].astype(np.int32))
        if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MAX_ENTRIES or len(table.shape) != 3 or index.ndim != 2:
            raise ValueError(f"shape {shape}, a table of {tuple(table.shape)} and indices of {tuple(index.shape)}")
        spaces, clusters, length = table.shape
        columns = math.prod(shape[1:])
        if tuple(index.shape) != (shape[0], spaces) or not (spaces - 1) * length < columns <= spaces * length:
            raise ValueError(f"{spaces} sub-vectors of {length} and indices {tuple(index.shape)} for the shape {shape}")
        least, most = int(index.min()), int(index.max())
        if least < 0 or most >= clusters:
            raise ValueError(f"indices {least} to {most} into {clusters} vectors")
        return cls(index.to(index_dtype(clusters)), table, shape)

"""Binary: every entry is plus or minus the scale of its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.affine import as_rows
from kogata.forms.base import Dense, Form, passes
from kogata.job import Role


class Binary(Form):
    """``scale`` where ``positive`` (bool, the shape of the tensor) is true, ``-scale`` elsewhere.

    Rows are ``[shape[0], -1]``; a vector is one row. ``scale`` is ``[rows, 1]``, or ``[1, 1]`` when all rows share it. The
    scales are trainable, the signs are not.

    >>> import torch
    >>> from kogata.forms import Binary
    >>> Binary.of(torch.tensor([[0.3, -0.1], [-2.0, 0.0]]), torch.tensor([[0.2], [1.0]])).dense().detach()
    tensor([[ 0.2000, -0.2000],
            [-1.0000,  1.0000]])
    """

    TAG = "binary"

    positive: Tensor
    scale: Form

    def __init__(self, positive: Tensor, scale: Form) -> None:
        super().__init__()
        self.shape = positive.shape
        self.register_buffer("positive", positive)
        self.scale = scale

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor) -> Self:
        """The signs of ``weight``, where zero counts as positive, with trainable scales."""
        return cls(weight >= 0, Dense(scale, Role.SCALE))

    def dense(self) -> Tensor:
        """± scale, of ``shape``."""
        scale = self.scale.dense()
        return torch.where(as_rows(self.positive), scale, -scale).reshape(self.shape)

    def planes(self) -> dict[str, Plane]:
        """One bit for each entry."""
        return {"positive": Plane.mask(self.positive.cpu().numpy())}

    def header(self) -> dict[str, Any]:
        """Empty: the plane has the shape."""
        return {}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The scales with their signs."""
        return passes(planes["positive"].size, parts, extra=8)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the scales do not fit the rows."""
        positive, scale = torch.from_numpy(planes["positive"].astype(np.bool_)), parts["scale"]
        rows = as_rows(positive).shape[0]
        if tuple(scale.shape) not in ((rows, 1), (1, 1)):
            raise ValueError(f"scales of shape {tuple(scale.shape)}, expected {(rows, 1)} or (1, 1)")
        return cls(positive, scale)

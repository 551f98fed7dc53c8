"""Masked: pruned entries are zero, and a nested form holds the kept values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form, width
from kogata.job import Role


class Masked(Form):
    """Zeros, except for ``values`` (``[kept]``) at the flat, ascending indices ``position`` (int32, ``[kept]``).

    Pruned entries have no parameter, so no optimizer can change them, and a training step updates only the kept values.

    >>> import torch
    >>> from kogata.forms import Masked
    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> Masked.of(weight, weight > 2).dense().detach()
    tensor([[0., 0.],
            [3., 4.]])
    """

    TAG = "masked"

    position: Tensor
    values: Form

    def __init__(self, position: Tensor, values: Form, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.register_buffer("position", position)
        self.values = values

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor) -> Self:
        """Keep the entries of ``weight`` where ``mask`` (bool, the same shape) is true, as trainable values."""
        position = mask.flatten().nonzero().flatten().to(torch.int32)
        return cls(position, Dense(weight[mask], Role.VALUES), weight.shape)

    @property
    def mask(self) -> Tensor:
        """Bool, of ``shape``: true where an entry is kept."""
        mask = torch.zeros(self.shape.numel(), dtype=torch.bool, device=self.position.device)
        return mask.index_fill(0, self.position.long(), True).reshape(self.shape)

    def dense(self) -> Tensor:
        """The tensor, with zeros for pruned entries."""
        values = self.values.dense()
        flat = values.new_zeros(self.shape.numel()).index_put((self.position.long(),), values)
        return flat.reshape(self.shape)

    def kept(self) -> int:
        """The number of entries that are not pruned."""
        return self.values.kept()

    def planes(self) -> dict[str, Plane]:
        """The mask in the shape of the weight, so that a coder can exploit the density of each row and column."""
        return {"mask": Plane.mask(self.mask.cpu().numpy())}

    def header(self) -> dict[str, Any]:
        """Empty: the plane of the mask has the shape."""
        return {}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Positions and values of the kept entries, and the tensor."""
        mask, wide = planes["mask"], width(parts)
        kept = int(np.count_nonzero(mask))
        return Cost(keep=wide * mask.size + 4 * kept, scratch=wide * mask.size + 16 * kept, work=4 * (mask.size + kept))

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the number of values is not the number of kept entries."""
        mask, values = planes["mask"], parts["values"]
        position = torch.from_numpy(np.flatnonzero(mask).astype(np.int32))
        if tuple(values.shape) != tuple(position.shape):
            raise ValueError(f"a mask that keeps {len(position)} entries with values of shape {tuple(values.shape)}")
        return cls(position, values, mask.shape)

    def simplified(self) -> Form:
        """A mask over the kept values of another mask, as one mask over the weight."""
        inner = self.values
        return Masked(self.position[inner.position.long()], inner.values, self.shape) if isinstance(inner, Masked) else self

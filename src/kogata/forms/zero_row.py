"""ZeroRow: a weight with one row of exact zeros, such as the padding row of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form
from kogata.forms.masked import Masked
from kogata.forms.product import PAIR, Product


class ZeroRow(Form):
    """The tensor of ``part``, with zeros at ``row`` of its first axis, whatever the part holds there.

    >>> import torch
    >>> from kogata.forms import Codebook, ZeroRow
    >>> ZeroRow(Codebook.of(torch.tensor([[0, 1], [1, 1]]), torch.tensor([0.5, -1.0])), 0).dense().detach()
    tensor([[ 0.,  0.],
            [-1., -1.]])
    """

    TAG = "zero-row"
    part: Form

    def __init__(self, part: Form, row: int) -> None:
        super().__init__()
        self.shape, self.row = part.shape, row
        self.part = part

    def dense(self) -> Tensor:
        """The tensor of the part; the row of zeros has no gradient."""
        values = self.part.dense()
        return values.index_fill(0, torch.tensor([self.row], device=values.device), 0)

    def kept(self) -> int:
        """The numbers of the part."""
        return self.part.kept()

    def planes(self) -> dict[str, Plane]:
        """Empty: the part stores its own."""
        return {}

    def header(self) -> dict[str, Any]:
        """The row."""
        return {"row": self.row}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when the part has no such row."""
        row, part = header["row"], parts["part"]
        if type(row) is not int or not part.shape or not 0 <= row < part.shape[0]:
            raise ValueError(f"zeros at row {row!r} of a part of shape {tuple(part.shape)}")
        return cls(part, row)

    def simplified(self) -> Form:
        """The same where the part itself can hold the zeros."""
        return with_zero_row(self.part, self.row)


def with_zero_row(form: Form, row: int) -> Form:
    """``form`` with zeros at ``row``, in as simple a form as it can be.

    A dense tensor holds the zeros itself; of a product of two matrices the left one does, so that engines still compute it as
    two layers; a mask that prunes the whole row needs no change.
    """
    if isinstance(form, Dense):
        values = form.values.detach()
        if not bool(values[row].any()):
            return form
        values = values.index_fill(0, torch.tensor([row], device=values.device), 0)
        return Dense(torch.nn.Parameter(values, requires_grad=form.values.requires_grad), form.role)
    if isinstance(form, Product) and form.equation == PAIR:
        left, right = (cast("Form", factor) for factor in form.factors)
        zeroed = with_zero_row(left, row)
        return form if zeroed is left else Product(form.equation, [zeroed, right], form.shape)
    if isinstance(form, Masked) and not bool(form.mask[row].any()):
        return form
    return form if isinstance(form, ZeroRow) and form.row == row else ZeroRow(form, row)

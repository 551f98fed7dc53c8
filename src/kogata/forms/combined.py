"""Sum: a weight is the sum of several forms, such as an approximation and a correction of its residual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
from torch import Tensor, nn

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane
from kogata.forms.base import Form, passes


class Sum(Form):
    """The sum of ``terms``, which all have the same shape.

    >>> import torch
    >>> from kogata.forms import Codebook, Sum
    >>> first = Codebook.of(torch.tensor([[0, 1]]), torch.tensor([0.5, -1.0]))
    >>> second = Codebook.of(torch.tensor([[1, 1]]), torch.tensor([0.25, 0.125]))
    >>> Sum([first, second]).dense().detach()
    tensor([[ 0.6250, -0.8750]])
    """

    TAG = "sum"

    terms: nn.ModuleList

    def __init__(self, terms: Sequence[Form]) -> None:
        super().__init__()
        self.shape = terms[0].shape
        self.terms = nn.ModuleList(terms)

    def dense(self) -> Tensor:
        """The sum, of ``shape``."""
        first, *others = (cast("Form", term).dense() for term in self.terms)
        return sum(others, start=first)

    def kept(self) -> int:
        """The numbers stored for all terms together."""
        return sum(term.kept() for term in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Empty: the terms store their own planes."""
        return {}

    def header(self) -> dict[str, Any]:
        """Empty: the terms have the shape."""
        return {}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """One addition for each term."""
        entries = max((part.shape.numel() for part in parts.values()), default=0)
        return passes(entries, parts)._replace(work=entries * len(parts))

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when there is no term, or when the terms differ in shape."""
        terms = list(parts.values())
        shapes = {tuple(term.shape) for term in terms}
        if len(shapes) != 1:
            raise ValueError(f"a sum of terms of the shapes {sorted(shapes)}, expected one common shape")
        return cls(terms)

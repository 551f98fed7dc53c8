"""Sum: a weight is the sum of several forms, each of which holds what the ones before it left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
from torch import Tensor, nn

from kogata.coding.plane import Plane
from kogata.forms.base import Form


class Sum(Form):
    """``Σ terms``, each a form of one common ``shape``: the stages of a residual quantizer, or a code and its residual."""

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
        """Nothing of its own: the terms store themselves."""
        return {}

    def header(self) -> dict[str, Any]:
        """Nothing: the terms know the shape."""
        return {}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when there is no term, or when the terms differ in shape."""
        terms = list(parts.values())
        shapes = {tuple(term.shape) for term in terms}
        if len(shapes) != 1:
            raise ValueError(f"a sum of terms of the shapes {sorted(shapes)}, expected one common shape")
        return cls(terms)

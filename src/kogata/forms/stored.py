"""How matrices lie in a parameter: a weight that is stored in another order, and several matrices in one parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.coding.plane import Plane
from kogata.forms.base import Dense, Form
from kogata.job import Layout, Role

MAX_ENTRIES = 1 << 31  # of the whole weight: a few bytes of parts in a damaged file must not reserve more
MAX_AXES = 16


class Transposed(Form):
    """A matrix ``part``, stored otherwise: seen as ``view``, the weight's axes in the order ``axes`` are those of the matrix.

    A weight ``[inputs, outputs]`` has the view ``(inputs, outputs)`` and the axes ``(1, 0)``.
    """

    TAG = "transposed"
    part: Form

    def __init__(self, part: Form, view: Sequence[int], axes: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        self.view, self.axes, self.shape = tuple(view), tuple(axes), torch.Size(shape)
        self.part = part

    def dense(self) -> Tensor:
        """The entries in the order in which they are stored, of ``shape``."""
        matrix = self.part.dense().reshape([self.view[axis] for axis in self.axes])
        inverse = sorted(range(len(self.axes)), key=lambda n: self.axes[n])
        # always of the same strides, however the part lies in memory: a product adds up in an order that depends on them
        return matrix.permute(inverse).reshape(self.shape).contiguous()

    def kept(self) -> int:
        """The numbers of the part."""
        return self.part.kept()

    def planes(self) -> dict[str, Plane]:
        """Nothing of its own."""
        return {}

    def header(self) -> dict[str, Any]:
        """View, axes and shape."""
        return {"view": list(self.view), "axes": list(self.axes), "shape": list(self.shape)}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when view, axes, shape and part do not fit each other."""
        view, axes, shape, part = header["view"], header["axes"], header["shape"], parts["part"]
        for name, sizes in (("view", view), ("axes", axes), ("shape", shape)):
            if not isinstance(sizes, list) or len(cast("list[Any]", sizes)) > MAX_AXES:
                raise ValueError(f"{name} {sizes!r} is no list of at most {MAX_AXES} sizes")
            if not all(type(size) is int and 0 <= size <= MAX_ENTRIES for size in cast("list[Any]", sizes)):
                raise ValueError(f"{name} {sizes!r} holds something else than sizes of at most {MAX_ENTRIES}")
        if sorted(axes) != list(range(len(view))):
            raise ValueError(f"axes {axes} are no order of the axes of a view {view}")
        if not math.prod(view) == math.prod(shape) == part.shape.numel() <= MAX_ENTRIES:
            raise ValueError(f"a part of shape {tuple(part.shape)} as a view {view} of a weight {shape}")
        return cls(part, view, axes, shape)

    def simplified(self) -> Form:
        """A dense part is simply stored in the other order."""
        return Dense(_like(self.dense(), self.part), self.part.role) if isinstance(self.part, Dense) else self


class Separate(Form):
    """Several weights of one shape as one: part n is what the weight holds at n along its first axis."""

    TAG = "separate"
    matrices: nn.ModuleList

    def __init__(self, matrices: Sequence[Form]) -> None:
        super().__init__()
        self.shape = torch.Size((len(matrices), *matrices[0].shape))
        self.matrices = nn.ModuleList(matrices)

    def dense(self) -> Tensor:
        """The parts, stacked."""
        return torch.stack([cast("Form", part).dense() for part in self.matrices])

    def kept(self) -> int:
        """The numbers of all parts."""
        return sum(part.kept() for part in self.parts().values())

    def planes(self) -> dict[str, Plane]:
        """Nothing of its own."""
        return {}

    def header(self) -> dict[str, Any]:
        """Nothing: the parts know the shape."""
        return {}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild; raises ValueError when there is no part, or when the parts differ in shape."""
        shapes = {tuple(part.shape) for part in parts.values()}
        if len(shapes) != 1:
            raise ValueError(f"separate matrices of the shapes {sorted(shapes)}, expected one common shape")
        if len(parts) * math.prod(next(iter(shapes))) > MAX_ENTRIES:
            raise ValueError(f"{len(parts)} matrices of shape {next(iter(shapes))}, expected at most {MAX_ENTRIES} entries")
        return cls(list(parts.values()))

    def simplified(self) -> Form:
        """Parts that are all dense are simply one tensor."""
        parts = [part.simplified() for part in self.parts().values()]
        if not all(isinstance(part, Dense) for part in parts):
            return self
        first = cast("Dense", parts[0])
        return Dense(_like(torch.stack([part.dense().detach() for part in parts]), first), first.role)


def apart(weight: Dense, layout: Layout) -> Form:
    """The tree whose leaves are the matrices of a weight with this layout, in the weight's own memory where they can be."""
    values, shape = weight.values.detach(), weight.shape
    matrices = values.reshape(layout.view).permute(layout.axes).reshape(layout.count, *layout.shape)
    same = layout.axes == tuple(range(len(layout.axes)))
    if layout.count == 1:
        leaf = Dense(_like(matrices[0], weight), Role.MATRIX)
        return leaf if same and layout.shape == tuple(shape) else Transposed(leaf, layout.view, layout.axes, shape)
    leaves = [Dense(_like(matrix, weight), Role.MATRIX) for matrix in matrices]
    if same and layout.shape == tuple(shape[1:]):
        return Separate(leaves)
    axes = tuple(axis - 1 for axis in layout.axes[1:])
    return Separate([Transposed(leaf, layout.view[1:], axes, shape[1:]) for leaf in leaves])


def _like(values: Tensor, other: Form) -> nn.Parameter:
    """Values as a parameter that is trained if the other's are."""
    trained = any(leaf.values.requires_grad for _, leaf in other.leaves())
    return nn.Parameter(values.detach(), requires_grad=trained)

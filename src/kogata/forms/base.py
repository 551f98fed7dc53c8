"""A form is a small trainable program that regenerates a weight; forms nest.

The tree under one weight has forms as nodes and :class:`Dense` leaves. A method replaces a leaf by a smaller tree, and the
role of a leaf says what it is, so that a method for matrices never touches a scale or a table of centroids by accident.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.coding.plane import Plane
from kogata.job import Role


class Form(nn.Module, ABC):
    """Regenerates one tensor of ``shape`` from what it stores.

    A node registers its sub-forms as child modules and what it stores itself as buffers; only leaves hold parameters.
    """

    TAG: ClassVar[str] = ""  # names the form in files: never changed once released; of another package, with that one's name
    shape: torch.Size

    @abstractmethod
    def dense(self) -> Tensor:
        """The full tensor, of ``shape``; differentiable in the parameters of the leaves."""

    @abstractmethod
    def planes(self) -> dict[str, Plane]:
        """The arrays this node itself must store, each with its symbol model; sub-forms store their own."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """Text, whole numbers, booleans, lists and mappings which, with planes and sub-forms, rebuild this node."""

    @classmethod
    @abstractmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild a node from a file. Raises ValueError, KeyError or TypeError when the parts do not fit each other."""

    def simplified(self) -> Form:
        """The same tensor with needless nesting removed (a mask within a mask is one mask)."""
        return self

    def parts(self) -> dict[str, Form]:
        """The direct sub-forms, by name, in a fixed order."""
        found: dict[str, Form] = {}
        for name, child in self.named_children():
            if isinstance(child, Form):
                found[name] = child
            elif isinstance(child, nn.ModuleList):
                found |= {f"{name}.{i}": cast("Form", part) for i, part in enumerate(child)}
        return found

    def leaves(self) -> Iterator[tuple[str, Dense]]:
        """Every :class:`Dense` leaf below this node with its dotted path; a leaf itself has the path ``""``."""
        for name, part in self.parts().items():
            for path, leaf in part.leaves():
                yield f"{name}.{path}" if path else name, leaf

    def stored_bits(self) -> float:
        """Estimated bits to store the tree: the static entropy of each plane, before any coder has run."""
        own = sum(plane.entropy_bits() for plane in self.planes().values())
        return own + sum(part.stored_bits() for part in self.parts().values())

    def kept(self) -> int:
        """How many numbers of the tensor are stored, at whatever width: pruned entries are not."""
        return self.shape.numel()

    def describe(self) -> str:
        """The tree in words, such as ``masked(codebook)``."""
        inner = [part.describe() for part in self.parts().values() if not isinstance(part, Dense)]
        return f"{self.TAG}({', '.join(inner)})" if inner else self.TAG

    def forward(self, original: Tensor) -> Tensor:
        """Called by ``torch.nn.utils.parametrize``; ``original`` is empty and only carries the weight's dtype."""
        weight = self.dense().to(original.dtype)
        return weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight  # convolves faster


class Dense(Form):
    """A leaf: the numbers themselves."""

    TAG = "dense"

    values: nn.Parameter

    def __init__(self, values: Tensor, role: Role) -> None:
        super().__init__()
        self.values = values if isinstance(values, nn.Parameter) else nn.Parameter(values.detach())
        self.role = role

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride] - a leaf's shape is its tensor's
        """Shape of the leaf."""
        return self.values.shape

    def dense(self) -> Tensor:
        """The parameter itself."""
        return self.values

    def leaves(self) -> Iterator[tuple[str, Dense]]:
        """Itself, under the empty path."""
        yield "", self

    def planes(self) -> dict[str, Plane]:
        """One plane of floats, as half precision where that loses nothing."""
        return {"values": float_plane(self.values)}

    def header(self) -> dict[str, Any]:
        """The role, and the dtype where the plane is narrower than the tensor."""
        return {"role": str(self.role), "dtype": str(self.values.dtype).removeprefix("torch.")}

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild the leaf; raises ValueError on an unknown role or dtype."""
        return cls(float_tensor(planes["values"], header["dtype"]), Role(header["role"]))


PIECE = 1 << 20  # entries worked on at a time where a whole tensor more would be memory wasted


FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def float_plane(values: Tensor) -> Plane:
    """Any float tensor as a plane that loses nothing, narrowed to float16 where every value is exact in it."""
    tensor = values.detach().cpu().contiguous()
    if tensor.dtype in (torch.float32, torch.float64) and _exact_in_half(tensor):
        tensor = tensor.to(torch.float16)
    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16: its bits travel as uint16
        return Plane.floats(tensor.view(torch.int16).numpy().view(np.uint16), "bfloat16")
    return Plane.floats(tensor.numpy())


def _exact_in_half(tensor: Tensor) -> bool:
    """In pieces, because the first one nearly always tells."""
    return all(torch.equal(piece.half().to(piece.dtype), piece) for piece in tensor.flatten().split(PIECE))


def squared_distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖² of two tensors of one shape, in pieces: large weights need no third tensor of their size."""
    pairs = zip(one.flatten().split(PIECE), other.flatten().split(PIECE), strict=True)
    return sum(float((a - b).double().square().sum()) for a, b in pairs)


def float_tensor(array: np.ndarray, dtype: object) -> Tensor:
    """The inverse of :func:`float_plane`; raises ValueError for a dtype that is no float."""
    if dtype not in FLOATS:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(FLOATS)}")
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(FLOATS[str(dtype)])
    return torch.from_numpy(array).to(FLOATS[str(dtype)])


def index_dtype(count: int) -> torch.dtype:
    """The narrowest torch integer type that holds ``0 .. count - 1``."""
    return torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32


def nodes(form: Form, path: str = "") -> Iterator[tuple[str, Form]]:
    """Every form of a tree with its dotted path, the root first."""
    yield path, form
    for name, part in form.parts().items():
        yield from nodes(part, f"{path}.{name}" if path else name)

"""The base class of forms. A form is a trainable module that regenerates a weight, and forms can be nested.

The forms of one weight are a tree with :class:`Dense` leaves. A method replaces a leaf by a smaller tree. The role of a leaf
says what its numbers mean, so that a method for matrices never changes a scale or a table of centroids by accident.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from kogata.coding.budget import Cost
from kogata.coding.plane import Plane, checked_shape
from kogata.job import Role


class Form(nn.Module, ABC):
    """Regenerates one tensor of ``shape`` from a smaller representation.

    A form registers its sub-forms as child modules, and the arrays that it stores itself as buffers. Only leaves hold
    parameters. ``TAG`` names the form in files and must never change once released. A form of another package puts that
    package's name in its tag.
    """

    TAG: ClassVar[str] = ""
    shape: torch.Size

    @abstractmethod
    def dense(self) -> Tensor:
        """The full tensor, of ``shape``; differentiable in the parameters of the leaves."""

    @abstractmethod
    def planes(self) -> dict[str, Plane]:
        """The arrays that this form itself stores, by name, each with its symbol model. Sub-forms store their own."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The JSON values (text, integers, booleans, lists, mappings) that, with planes and sub-forms, rebuild this form."""

    @classmethod
    @abstractmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild a form from the contents of a file: its header, planes and sub-forms.

        Raises ValueError, KeyError or TypeError when they do not fit each other.
        """

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """Memory and work that ``restore`` and one call of ``dense`` take, besides those of the planes and of the parts.

        A reader calls it before ``restore``, with the same arguments, none of which are checked. So it must neither reserve
        memory nor loop over entries; it may raise what ``restore`` raises. The default is for a form that makes a few passes
        over as many entries as its planes and parts have together, or as a ``shape`` in the header says if that is more.
        """
        held = sum(plane.size for plane in planes.values()) + sum(part.shape.numel() for part in parts.values())
        stated = math.prod(checked_shape(header["shape"])) if "shape" in header else 0
        return passes(max(held, stated), parts)

    def simplified(self) -> Form:
        """An equal form with needless nesting removed; a mask over a mask, for example, becomes one mask."""
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
        """Every :class:`Dense` leaf of the tree with its dotted path; the path of a leaf from itself is ``""``."""
        for name, part in self.parts().items():
            for path, leaf in part.leaves():
                yield f"{name}.{path}" if path else name, leaf

    def stored_bits(self) -> float:
        """The estimated number of bits to store the tree: the sum of the static entropies of its planes."""
        own = sum(plane.entropy_bits() for plane in self.planes().values())
        return own + sum(part.stored_bits() for part in self.parts().values())

    def kept(self) -> int:
        """How many numbers are stored, whatever their bit width; pruned entries do not count."""
        return self.shape.numel()

    def describe(self) -> str:
        """The tree in words, such as ``masked(codebook)``."""
        inner = [part.describe() for part in self.parts().values() if not isinstance(part, Dense)]
        return f"{self.TAG}({', '.join(inner)})" if inner else self.TAG

    def forward(self, original: Tensor) -> Tensor:
        """The weight, in the dtype of ``original``.

        Called by ``torch.nn.utils.parametrize``; ``original`` is an empty tensor.
        """
        weight = self.dense().to(original.dtype)
        return weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight  # faster convolutions


class Dense(Form):
    """A leaf of a tree of forms: it stores the tensor itself, as a parameter, with a role.

    >>> import torch
    >>> from kogata.forms import Dense, Role
    >>> leaf = Dense(torch.zeros(8, 4), Role.MATRIX)
    >>> leaf.shape, leaf.kept()
    (torch.Size([8, 4]), 32)
    """

    TAG = "dense"

    values: nn.Parameter

    def __init__(self, values: Tensor, role: Role) -> None:
        super().__init__()
        self.values = values if isinstance(values, nn.Parameter) else nn.Parameter(values.detach())
        self.role = role

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride] - a leaf's shape is its tensor's
        """The shape of the tensor."""
        return self.values.shape

    def dense(self) -> Tensor:
        """The parameter itself."""
        return self.values

    def leaves(self) -> Iterator[tuple[str, Dense]]:
        """The leaf itself, under the empty path."""
        yield "", self

    def planes(self) -> dict[str, Plane]:
        """One plane of floats, in half precision where that is exact."""
        return {"values": float_plane(self.values)}

    def header(self) -> dict[str, Any]:
        """The role, and the dtype where the plane is narrower than the tensor."""
        return {"role": str(self.role), "dtype": str(self.values.dtype).removeprefix("torch.")}

    @classmethod
    def cost(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Cost:
        """The tensor in its own dtype, which may be wider than the plane."""
        return Cost(keep=8 * planes["values"].size, work=planes["values"].size)

    @classmethod
    def restore(cls, header: Mapping[str, Any], planes: Mapping[str, np.ndarray], parts: Mapping[str, Form]) -> Self:
        """Rebuild the leaf; raises ValueError on an unknown role or dtype."""
        return cls(float_tensor(planes["values"], header["dtype"]), Role(header["role"]))


def passes(entries: int, parts: Mapping[str, Form], extra: int = 0) -> Cost:
    """The cost of a form with this many entries that computes them in a few passes, such as a gather and a multiplication.

    ``extra`` is the number of further bytes that each entry takes while they are computed, for indices for example.
    """
    wide = width(parts)
    return Cost(keep=wide * entries, scratch=(wide + extra) * entries, work=4 * entries)


def width(parts: Mapping[str, Form]) -> int:
    """Bytes of an entry of a form with these parts: the width of their widest leaf, at least 4."""
    return max((4, *(leaf.values.element_size() for part in parts.values() for _, leaf in part.leaves())))


PIECE = 1 << 20  # entries processed at a time, so that no temporary tensor is as large as the weight


FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def float_plane(values: Tensor) -> Plane:
    """A float tensor as a plane, without loss. It is narrowed to float16 where that represents every value exactly."""
    tensor = values.detach().cpu().contiguous()
    if tensor.dtype in (torch.float32, torch.float64) and _exact_in_half(tensor):
        tensor = tensor.to(torch.float16)
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16, so its bits are stored as uint16
        return Plane.floats(tensor.view(torch.int16).numpy().view(np.uint16), "bfloat16")
    return Plane.floats(tensor.numpy())


def _exact_in_half(tensor: Tensor) -> bool:
    """Whether float16 represents every entry. Checked piece by piece, because the first piece nearly always decides."""
    return all(torch.equal(piece.half().to(piece.dtype), piece) for piece in tensor.flatten().split(PIECE))


def squared_distance(one: Tensor, other: Tensor) -> float:
    """‖one − other‖² for two tensors of one shape, computed in pieces to avoid a third tensor of their size."""
    pairs = zip(one.flatten().split(PIECE), other.flatten().split(PIECE), strict=True)
    return sum(float((a - b).double().square().sum()) for a, b in pairs)


def float_tensor(array: np.ndarray, dtype: object) -> Tensor:
    """The inverse of :func:`float_plane`; raises ValueError when ``dtype`` is not a supported float type."""
    if dtype not in FLOATS:
        raise ValueError(f"dtype {dtype!r} is unknown; expected {', '.join(FLOATS)}")
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

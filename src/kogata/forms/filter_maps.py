"""Index maps of transferred filters: each filter of the layer is a transform of a base filter, T′Φ(x) = Φ(Tx).

The weight of a convolution, ``[outputs, inputs, *kernel]``, is divided into groups of n consecutive filters. Filter t of a
group is transform t of its base filter, and transform 0 is the identity. Each map applies its transforms to an array of the
indices of the base, so it is a permutation or a selection by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from kogata.forms.index_map import IndexMap, whole


@final
@dataclass(frozen=True)
class Repeat(IndexMap):
    """Repeats each filter ``copies`` times; the copies differ only in their biases (multi-bias activation, 1604.00676)."""

    TAG = "repeat"

    copies: int

    def __post_init__(self) -> None:
        whole("copies", self.copies, 2)

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; the base has one filter for each group of copies."""
        base = _base(shape, size, self.copies)
        return base.repeat_interleave(self.copies, 0), torch.ones(tuple(shape), dtype=torch.int8)

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        """Each row of the base, ``copies`` times."""
        return torch.arange(outputs) // self.copies, torch.ones(outputs, dtype=torch.int8)


@final
@dataclass(frozen=True)
class Opposite(IndexMap):
    """Each filter, followed by its negative, as in concatenated ReLU (1603.05201)."""

    TAG = "opposite"

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; the base has half the filters."""
        base = _base(shape, size, 2)
        sign_O = self.rows(shape[0])[1]
        sign = sign_O.reshape(-1, *(1 for _ in shape[1:])).expand(tuple(shape)).contiguous()
        return _stacked([base, base], shape), sign

    def rows(self, outputs: int) -> tuple[Tensor, Tensor]:
        """Each row of the base, then its negative."""
        place = torch.arange(outputs)
        return place // 2, (1 - 2 * (place % 2)).to(torch.int8)


@final
@dataclass(frozen=True)
class Orbit(IndexMap):
    """Each filter in four rotations (the group p4), or with ``mirrored`` in eight rotations and reflections (p4m) (1602.07576).

    With ``stacked`` the input channels are themselves indexed by the group, all orientations of one map after another. Rotating
    a filter then also permutes its input channels, f(h) → f(g⁻¹h). Otherwise only the kernel of each channel is rotated.
    """

    TAG = "orbit"

    mirrored: bool
    stacked: bool

    def __post_init__(self) -> None:
        for name, value in (("mirrored", self.mirrored), ("stacked", self.stacked)):
            if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - a file may say anything
                raise ValueError(f"{name} is {value!r}, expected true or false")

    @property
    def order(self) -> int:
        """The number of elements of the group."""
        return 8 if self.mirrored else 4

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; kernels must be square, and stacked inputs must come in whole groups."""
        _square(shape)
        if self.stacked and shape[1] % self.order:
            raise ValueError(f"{shape[1]} inputs do not divide into groups of {self.order} orientations")
        base = _base(shape, size, self.order)
        turned = [self._moved(base, element) for element in range(self.order)]
        return _stacked(turned, shape), torch.ones(tuple(shape), dtype=torch.int8)

    def _moved(self, base: Tensor, element: int) -> Tensor:
        planes = moved(base, element)
        if not self.stacked:
            return planes
        source = [compose(inverse(element), h) for h in range(self.order)]
        return planes.unflatten(1, (-1, self.order))[:, :, source].flatten(1, 2)


@final
@dataclass(frozen=True)
class Crops(IndexMap):
    """All crops, in row-major order, of larger filters that are ``extent`` high and wide (doubly convolution, 1610.09716)."""

    TAG = "crops"

    extent: int

    def __post_init__(self) -> None:
        whole("extent", self.extent, 2)

    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """See :class:`IndexMap`; kernels must be square and smaller than ``extent``."""
        kernel = _square(shape)
        outputs, inputs = shape[:2]
        copies = (self.extent - kernel + 1) ** 2 if self.extent > kernel else 0
        if not copies or outputs % copies or size != outputs // copies * inputs * self.extent**2:
            raise ValueError(f"{list(shape)} is not all crops of filters of extent {self.extent} with {size} entries")
        base = torch.arange(size, dtype=torch.int32).reshape(-1, inputs, self.extent, self.extent)
        cut = base.unfold(2, kernel, 1).unfold(3, kernel, 1)  # [filters, inputs, y, x, kernel, kernel]
        return cut.permute(0, 2, 3, 1, 4, 5).reshape(tuple(shape)), torch.ones(tuple(shape), dtype=torch.int8)


FILTER_MAPS: tuple[type[IndexMap], ...] = (Repeat, Opposite, Orbit, Crops)


def moved(images: Tensor, element: int) -> Tensor:
    """``[..., H, W]`` mirrored if ``element`` is 4 or more, then rotated by ``element`` mod 4 quarter turns."""
    return torch.rot90(images.flip(-1) if element >= 4 else images, element % 4, (-2, -1))


def compose(one: int, other: int) -> int:
    """The group product: first ``other``, then ``one``. R^a M^m · R^b M^n = R^(a ± b) M^(m + n)."""
    turns = one + (-other if one >= 4 else other)
    return turns % 4 + 4 * ((one >= 4) != (other >= 4))


def inverse(element: int) -> int:
    """The inverse of ``element`` in the group; a reflection is its own inverse."""
    return element if element >= 4 else -element % 4


def crops(kernel: int, extent: int) -> list[tuple[int, int]]:
    """The offsets (y, x) of all crops of size ``kernel`` in a filter of size ``extent``, in row-major order.

    Empty unless ``extent`` is larger than ``kernel``.
    """
    places = range(extent - kernel + 1) if extent > kernel else range(0)
    return [(y, x) for y in places for x in places]


def _base(shape: Sequence[int], size: int, copies: int) -> Tensor:
    """The flat indices of the base, int32 ``[outputs / copies, ...]``."""
    if shape[0] % copies or size * copies != math.prod(shape):
        raise ValueError(f"{list(shape)} is not {copies} transforms of each filter of a base of {size} entries")
    return torch.arange(size, dtype=torch.int32).reshape(shape[0] // copies, *shape[1:])


def _stacked(transforms: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    return torch.stack(list(transforms), 1).reshape(tuple(shape))


def _square(shape: Sequence[int]) -> int:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"{list(shape)} does not have a square kernel")
    return shape[2]

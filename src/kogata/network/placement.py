"""Where the operand of a product lies in the weight that it comes from, and which rows of the weight meet which inputs.

An operand may be the weight, a view of it (transposed, one of three chunks, one expert), or something computed from it. Its
strides say which entry of the weight each of its entries is; the roles of its axes then say which axes of the weight are
outputs and which are inputs. That gives the layout of the weight's matrices, whoever stored it and in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from kogata.job import Kind, Layout
from kogata.network.input_rows import merged
from kogata.network.operations import Use


class Rows(NamedTuple):
    """Inputs ``[G, rows, columns]`` of the weight's rows from ``start`` to ``stop``, cut into G equal groups."""

    start: int
    stop: int
    x_GNI: Tensor


@dataclass(frozen=True)
class Axis:
    """An axis of the weight seen as the operand's axes cut it: ``count`` of its ``size`` entries, from ``start`` on."""

    stride: int
    size: int
    role: str
    source: int | None  # the operand's axis
    start: int
    count: int


@dataclass(frozen=True)
class Placement:
    """One use of a weight: how its matrices lie in it, and the inputs of its rows in this call."""

    use: Use
    layout: Layout
    axes: tuple[Axis, ...]  # in the order of the layout: the axis of matrices, other axes without sums, outputs, inputs
    chosen: Tensor | None = None  # [N]: for each entry of one axis of the operand the matrix that it is
    along: int = 0  # that axis, among those that inputs and outputs have too

    def whole(self) -> bool:
        """Whether the call uses all of the weight as one matrix."""
        grouped = self.use.kind is Kind.CONV  # the groups of a convolution are channels one after another
        return self.layout.count == 1 and all(a.count == a.size and (grouped or a.role in "oi") for a in self.axes)

    def spans(self) -> list[tuple[int, int]]:
        """The rows of the layout that the call uses, as the start and the end of each stretch of them."""
        if self.chosen is not None:
            each = [replace(self.axes[0], start=matrix) for matrix in self.chosen.unique().tolist()]
            return [span for axis in each for span in replace(self, axes=(axis, *self.axes[1:]), chosen=None).spans()]
        outer = [axis for axis in self.axes if axis.role in "sb"]
        outputs = math.prod(axis.size for axis in self.axes if axis.role == "o")
        used = math.prod(axis.count for axis in self.axes if axis.role == "o")
        first = next((axis.start * (outputs // axis.size) for axis in self.axes if axis.role == "o"), 0)
        groups = [0]
        for axis in outer:
            groups = [group * axis.size + n for group in groups for n in range(axis.start, axis.start + axis.count)]
        if used == outputs and groups == list(range(groups[0], groups[0] + len(groups))):
            return [(groups[0] * outputs, (groups[-1] + 1) * outputs)]
        return [(group * outputs + first, group * outputs + first + used) for group in groups]

    def rows(self) -> Iterator[Rows]:
        """Pieces of the inputs, in the order of the layout's rows and columns."""
        if self.chosen is not None:
            yield from self._of_chosen(self.chosen)
            return
        spans = self.spans()
        for x_GNI in self._pieces():
            if len(spans) == 1:
                yield Rows(*spans[0], x_GNI)
                continue
            for n, (start, stop) in enumerate(spans):
                yield Rows(start, stop, x_GNI[n : n + 1] if len(x_GNI) > 1 else x_GNI)

    def choosing(self, chosen: Tensor, shadow: Tensor) -> Placement | None:
        """The same where the operand has, N times along an axis of stride 0, another one of the matrices each time."""
        batch = [n for n, role in enumerate(self.use.roles) if role == "b"]
        along = [at for at, n in enumerate(batch) if shadow.stride(n) == 0 and shadow.shape[n] == len(chosen)]
        if len(along) != 1 or self.axes[0].role != "s" or self.axes[0].count != 1 or self.use.view is not None:
            return None
        return replace(self, chosen=chosen, along=along[0])

    def _of_chosen(self, chosen: Tensor) -> Iterator[Rows]:
        for matrix in chosen.unique().tolist():
            places = (chosen == matrix).nonzero()[:, 0]
            use = replace(self.use, rows=partial(_selected, self.use.rows, self.along, places))
            axes = (replace(self.axes[0], start=matrix), *self.axes[1:])
            yield from replace(self, use=use, axes=axes, chosen=None).rows()

    def _pieces(self) -> Iterator[Tensor]:
        """The inputs ``[G, rows, columns]``: one group, or one for each combination of the axes before the outputs."""
        roles = self.use.roles
        batch, columns = ([n for n, role in enumerate(roles) if role == letter] for letter in "bi")
        place = {n: at for at, n in enumerate(batch)} | {n: len(batch) + 1 + at for at, n in enumerate(columns)}
        outer = [axis for axis in self.axes if axis.role in "sb"]
        leading = [axis.source for axis in outer if axis.source in place]
        inner = [axis.source for axis in self.axes if axis.role == "i" and axis.source is not None]
        rows = [n for n in batch if n not in leading]  # axes along which the operand is only repeated
        rest = [n for n in columns if n not in leading and n not in inner]  # of size 1
        order = [*(place[n] for n in (*leading, *rows)), len(batch), *(place[n] for n in (*inner, *rest))]
        for slices in self.use.rows():
            piece = merged(slices, len(batch))
            if not piece.numel():
                continue  # an empty batch, such as the last of a loader
            moved = piece.permute(order)
            width = math.prod(moved.shape[len(leading) + len(rows) + 1 :])
            moved = moved.reshape(*moved.shape[: len(leading)], -1, width)
            if leading:  # axes that the inputs lack share them
                for at, axis in enumerate(outer):
                    if axis.source not in place:
                        moved = moved.unsqueeze(at).expand(*moved.shape[:at], axis.count, *moved.shape[at:])
            yield moved.reshape(-1, *moved.shape[-2:])


def _selected(rows: Callable[[], Iterator[Tensor]], axis: int, places: Tensor) -> Iterator[Tensor]:
    for piece in rows():
        yield piece.index_select(axis, places)


def placed(use: Use, shadow: Tensor, shape: Sequence[int]) -> Placement | None:
    """The placement of an operand in a weight of ``shape``; None where it is no block of whole rows of matrices.

    ``shadow`` has the operand's shape, and the strides and offset with which its entries lie in the contiguous weight.
    """
    if use.view is not None:
        seen = shadow.reshape(use.view)
        if not same_storage(seen, shadow):
            return None
        shadow = seen
    numel = math.prod(shape)
    axes = _axes(shadow, use.roles, numel)
    if axes is None:
        return None
    axes = _cut(axes, shape, use.kind)
    return None if axes is None else _arranged(use, axes, shape)


def _axes(shadow: Tensor, roles: str, numel: int) -> list[Axis] | None:
    """The weight's axes in the order in which they are stored, as the operand's strides cut them."""
    found: list[Axis] = []
    offset, expected = int(shadow.storage_offset()), 1
    parts = sorted((stride, n) for n, stride in enumerate(shadow.stride()) if shadow.shape[n] > 1 and stride > 0)
    if any(stride == 0 and shadow.shape[n] > 1 and roles[n] != "b" for n, stride in enumerate(shadow.stride())):
        return None
    for stride, n in [*parts, (numel, -1)]:
        last = found[-1] if found else None
        if stride > expected and last is not None and last.role in "ob" and stride % last.stride == 0:
            size = stride // last.stride  # the operand has some entries of this axis
            found[-1] = Axis(last.stride, size, last.role, last.source, offset // last.stride % size, last.count)
        elif stride > expected and stride % expected == 0:  # it has one entry of an axis that it lacks
            size = stride // expected
            found.append(Axis(expected, size, "b", None, offset // expected % size, 1))
        elif stride != expected:
            return None
        if n >= 0:
            found.append(Axis(stride, shadow.shape[n], roles[n], n, 0, shadow.shape[n]))
            expected = stride * shadow.shape[n]
    if sum(axis.start * axis.stride for axis in found) != offset:
        return None
    return found[::-1]


def _cut(axes: list[Axis], shape: Sequence[int], kind: Kind) -> list[Axis] | None:
    """The same, with the first axis of a stack of matrices marked ``s``: each of them is compressed by itself."""
    if kind is Kind.CONV or len(shape) < 3 or shape[0] == 1:
        return axes
    first, matrix = axes[0], math.prod(shape[1:])
    if first.stride < matrix and first.role == "o" and first.stride * first.size == matrix * shape[0]:
        inner = matrix // first.stride  # one axis of outputs across all matrices: it is cut where a matrix begins
        start, stop = first.start, first.start + first.count
        if first.count > inner and (start % inner or stop % inner):
            return None
        if start // inner != (stop - 1) // inner and (start % inner or stop % inner):
            return None
        count = max(1, first.count // inner)
        outer = Axis(matrix, shape[0], first.role, None, start // inner, count)
        rest = Axis(first.stride, inner, first.role, first.source, start % inner if count == 1 else 0, min(inner, first.count))
        axes = [outer, rest, *axes[1:]]
        first = outer
    others = {axis.role for axis in axes[1:]}
    if first.stride == matrix and first.size == shape[0] and {"o", "i"} <= others:
        axes = [Axis(first.stride, first.size, "s", first.source, first.start, first.count), *axes[1:]]
    return axes


def _arranged(use: Use, axes: Sequence[Axis], shape: Sequence[int]) -> Placement | None:
    ranked = [axis for role in "sboi" for axis in axes if axis.role == role]
    outputs = [axis for axis in ranked if axis.role == "o"]
    inputs = [axis for axis in ranked if axis.role == "i"]
    if any(axis.count < axis.size for axis in (*inputs, *outputs[1:])):
        return None
    count = math.prod(axis.size for axis in ranked if axis.role == "s")
    rows = math.prod(axis.size for axis in ranked if axis.role in "bo")
    kernel = tuple(shape[2:]) if use.kind is Kind.CONV else ()
    width = math.prod(axis.size for axis in inputs)
    layout = Layout(
        view=tuple(axis.size for axis in axes),
        axes=tuple(axes.index(axis) for axis in ranked),
        shape=(rows, width // math.prod(kernel), *kernel),
        count=count,
    )  # fmt: skip
    return Placement(use, layout, tuple(ranked))


def same_storage(one: Tensor, other: Tensor) -> bool:
    """Whether one tensor is a view of the other, or both are views of a third."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - no public way


def is_plain(layout: Layout, shape: Sequence[int]) -> bool:
    """Whether a parameter of ``shape`` is the one matrix of the layout as it stands."""
    return layout.count == 1 and layout.axes == tuple(range(len(layout.axes))) and layout.shape == tuple(shape)

"""The inputs of a convolution as the rows that its flattened weight multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

_functorch: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] - no public way

PIECE = 1 << 24  # entries of an unfolded input at a time


def patches(inputs: Tensor, kernel: Sequence[int], call: Mapping[str, Any], groups: int) -> Iterator[Tensor]:
    """Pieces ``[groups, rows, channels, *kernel]`` of the patches of ``[samples, channels, *places]``.

    A few samples at a time, because each is unfolded into as many copies as the kernel has places. ``call`` holds the
    arguments of the convolution by name.
    """
    axes = len(kernel)
    stride, dilation = _each(call.get("stride", 1), axes), _each(call.get("dilation", 1), axes)
    padding = call.get("padding", 0)
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(side, side) for side in _each(0 if padding == "valid" else padding, axes)]
    yield from _unfolded(_batched(inputs, axes), kernel, stride, dilation, sides, groups)


def transposed_patches(inputs: Tensor, kernel: Sequence[int], call: Mapping[str, Any], groups: int) -> Iterator[Tensor]:
    """The same for a transposed convolution.

    It is a convolution with the flipped kernel of the inputs with ``stride - 1`` zeros between them (Dumoulin and Visin, 2016,
    1603.07285, section 4), so its patches are flipped to fit the kernel as it is stored.
    """
    axes = len(kernel)
    stride, dilation = _each(call.get("stride", 1), axes), _each(call.get("dilation", 1), axes)
    padding, extra = _each(call.get("padding", 0), axes), _each(call.get("output_padding", 0), axes)
    inputs = _batched(inputs, axes)
    reach = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    sides = [(far - side, far - side + more) for far, side, more in zip(reach, padding, extra, strict=True)]
    sizes = [step * (size - 1) + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    stuffed = inputs.new_zeros(*inputs.shape[:2], *sizes)
    stuffed[(..., *(slice(None, None, step) for step in stride))] = inputs
    for piece in _unfolded(stuffed, kernel, (1,) * axes, dilation, sides, groups):
        yield piece.flip(tuple(range(3, 3 + axes)))


def _unfolded(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], sides: Sequence[tuple[int, int]],
    groups: int,
) -> Iterator[Tensor]:  # fmt: skip
    padded = functional.pad(inputs, [side for pair in reversed(sides) for side in pair])
    if not padded.numel():
        return  # an empty batch, such as the last of a loader
    for piece in padded.split(max(1, PIECE // (padded[0].numel() * math.prod(kernel)))):
        columns = _two(piece, kernel, stride, dilation) if len(kernel) < 3 else _three(piece, kernel, stride, dilation)
        samples, width, _ = columns.shape
        grouped = columns.reshape(samples, groups, width // groups, -1).permute(1, 0, 3, 2).flatten(1, 2)
        yield grouped.unflatten(2, (-1, *kernel))


def _two(inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """``[samples, channels · kernel, places]`` of images or signals, by PyTorch's own function."""
    kernel, stride, dilation = ((1,) * (2 - len(v)) + tuple(v) for v in (kernel, stride, dilation))
    images = inputs if inputs.ndim == 4 else inputs.unsqueeze(2)
    return functional.unfold(images, cast("Any", kernel), cast("Any", dilation), stride=cast("Any", stride))


def _three(inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The same for volumes, which that function does not take."""
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        inputs = inputs.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    axes = len(kernel)
    return inputs.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes)).flatten(2 + axes).flatten(1, 1 + axes)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = tuple(int(number) for number in value) if isinstance(value, Sequence) else (int(value),)
    return values * axes if len(values) == 1 else values


def _batched(inputs: Tensor, axes: int) -> Tensor:
    """A single sample as a batch of one."""
    inputs = inputs.detach()
    return inputs if inputs.ndim == axes + 2 else inputs[None]


def within_vmap(tensor: Tensor) -> Tensor | None:
    """What a tensor within ``torch.vmap`` is one of the slices of; None for all others."""
    return _functorch.get_unwrapped(tensor) if _functorch.is_batchedtensor(tensor) else None


def merged(rows: Tensor, axis: int) -> Tensor:
    """Rows along ``axis`` that are those of one slice within ``torch.vmap``, with those of all slices; others as they are."""
    while (inside := within_vmap(rows)) is not None:
        slices = inside.movedim(_functorch.maybe_get_bdim(rows), axis)
        rows = slices.flatten(axis, axis + 1)
    return rows

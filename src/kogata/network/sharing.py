"""Tensors of a model that share memory: tied through ``.data``, registered in several modules, or views of each other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import torch
from torch import Tensor, nn

Named = tuple[str, Tensor]


def place_of(tensor: Tensor) -> Hashable:
    """Where the numbers of a tensor lie; equal for two tensors that are the same numbers in the same shape.

    >>> one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> other.weight.data = one.weight.data
    >>> place_of(one.weight) == place_of(other.weight), place_of(one.weight) == place_of(one.bias)
    (True, False)
    """
    if tensor.layout != torch.strided:
        return id(tensor)
    return _storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def overlaps(tensors: Iterable[Named]) -> dict[str, str]:
    """Each tensor that shares some of its memory with another, but is not the same numbers in the same shape, with its name.

    Two tensors that alternate in one memory count, too.

    >>> whole = torch.zeros(4, 3)
    >>> found = overlaps([("whole", whole), ("again", whole), ("half", whole[2:]), ("other", torch.zeros(3))])
    >>> found == {"whole": "half", "again": "half", "half": "whole"}
    True
    """
    found: dict[str, str] = {}
    for group in _by_storage(tensors):
        ranged = sorted((*_range(tensor), number) for number, (_, tensor) in enumerate(group))
        for at, (_, end, number) in enumerate(ranged):
            name, tensor = group[number]
            for start, _, other in ranged[at + 1 :]:
                if start >= end:
                    break
                if place_of(group[other][1]) != place_of(tensor):
                    found.setdefault(name, group[other][0])
                    found.setdefault(group[other][0], name)
    return found


def copies(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Copies of the tensors that share memory with others among them, by ``id``; they share memory in the same way.

    Parameters that are the same numbers in the same shape become one parameter, and buffers one buffer.
    """
    made: dict[int, Tensor] = {}
    for group in _by_storage((str(id(tensor)), tensor) for tensor in tensors):
        places: dict[Hashable, Tensor] = {}
        storage = group[0][1].untyped_storage().clone()
        for _, tensor in group:
            place = isinstance(tensor, nn.Parameter), place_of(tensor)
            if place not in places:
                same = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                same.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())  # pyright: ignore[reportUnknownMemberType, reportCallIssue, reportArgumentType]
                places[place] = nn.Parameter(same, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else same
            made[id(tensor)] = places[place]
    return made


def _by_storage(tensors: Iterable[Named]) -> Iterator[list[Named]]:
    """Tensors, each once, in lists of those with the same storage; only lists of more than one."""
    groups: dict[int, list[Named]] = {}
    for name, tensor in tensors:
        if tensor.layout == torch.strided and tensor.numel():
            groups.setdefault(_storage(tensor), []).append((name, tensor))
    yield from (group for group in groups.values() if len(group) > 1)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - no public way that works on ``meta``


def _range(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor uses, and the one behind its last."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * tensor.itemsize
    return int(start), int(start + (last + 1) * tensor.itemsize)

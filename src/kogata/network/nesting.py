"""Nested values: what a model takes and returns, as tuples, lists, mappings and dataclasses that hold tensors somewhere."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """Every part of a nesting that holds no others, in order: tensors, numbers, texts, None, objects of other kinds.

    >>> list(leaves({"a": (1, [2, None]), "b": "text"}))
    [1, 2, None, 'text']
    """
    if isinstance(value, Mapping):  # includes the output classes of transformers
        for part in cast("Mapping[Any, Any]", value).values():
            yield from leaves(part)
    elif _is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for part in cast("Sequence[Any]", value):
            yield from leaves(part)
    else:
        yield value


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A nesting of the same structure and classes, with every leaf changed.

    Attributes of a dataclass, and of a subclass of ``dict`` such as the outputs of transformers, follow. A mapping of another
    kind becomes a dictionary.

    >>> mapped(lambda part: part + 1, {"a": (1, [2, 3])})
    {'a': (2, [3, 4])}
    """
    if isinstance(value, Mapping):
        parts = {key: mapped(change, part) for key, part in cast("Mapping[Any, Any]", value).items()}
        if not isinstance(value, dict) or type(cast("object", value)) is dict:
            return parts
        made = copy.copy(cast("dict[Any, Any]", value))
        for key, part in parts.items():
            made[key] = part
        return made
    if _is_dataclass(value):
        made = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, mapped(change, getattr(value, field.name)))
        return made
    if isinstance(value, tuple | list):
        parts = [mapped(change, part) for part in cast("Sequence[Any]", value)]
        kind = cast("Any", type(cast("object", value)))
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return change(value)


def refilled(template: Any, tensors: Sequence[Tensor]) -> Any:
    """A nesting like ``template`` with ``tensors`` in the places of its tensors, in order. Other leaves stay.

    Raises ValueError when there are not as many tensors as places.
    """
    places = sum(isinstance(part, Tensor) for part in leaves(template))
    if len(tensors) != places:
        raise ValueError(f"{len(tensors)} tensors for {places} places")
    following = iter(tensors)
    return mapped(lambda part: next(following) if isinstance(part, Tensor) else part, template)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)

"""What modules keep beside their tensors: the value of ``get_extra_state``, where it is made of plain values and tensors.

No pickle is written or read. Bytes, and tensors of bytes, are left out for the same reason: the modules that make them, such as
those of Transformer Engine, unpickle them in ``set_extra_state``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kogata.errors import FileFormatError
from kogata.storage.manifest import MAX_NUMBER

DEEPEST = 10  # values within values; the manifest allows 64 brackets
DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


def extra_states(model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
    """The extra state of each module that has one, by its path: the values that a file can hold, and reasons for the others."""
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if not _overrides(module, "get_extra_state"):
            continue
        try:
            state = module.get_extra_state()
            encoded(state, lambda tensor: [])
        except ValueError as error:
            reasons[path] = str(error)
        except Exception as error:  # whatever the user's method raises
            reasons[path] = f"get_extra_state fails: {type(error).__name__}: {error}"
        else:
            found[path] = state
    return found, reasons


def encoded(value: Any, store: Callable[[Tensor], list[Any]], depth: int = DEEPEST) -> Any:
    """The value as an entry of the manifest; ``store`` gives the plane of a tensor, as a list.

    Raises ValueError, with the reason, for anything but None, booleans, text, numbers, lists, tuples, dictionaries and tensors.
    """
    kind = cast("type[object]", type(value))
    if value is None or kind in (bool, str) or (kind is int and -MAX_NUMBER < value < MAX_NUMBER):
        return value
    if kind is float:
        return ["float", value.hex()]
    if kind in (list, tuple, dict) and depth:
        parts = cast("Mapping[Any, Any]", value).items() if kind is dict else cast("Sequence[Any]", value)
        return [kind.__name__, [encoded(tuple(part) if kind is dict else part, store, depth - 1) for part in parts]]
    if isinstance(value, Tensor) and value.dtype in DTYPES and value.layout == torch.strided and not value.is_meta:
        return ["tensor", str(value.dtype).removeprefix("torch."), *store(value)]
    what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind.__name__
    raise ValueError(f"it holds {what}; a file holds numbers, text, tensors, and lists and dictionaries of these")


def decoded(node: Any, restore: Callable[[str, Any], Tensor], depth: int = DEEPEST) -> Any:
    """The inverse of :func:`encoded`; ``restore`` makes a tensor of its dtype and plane. Raises ValueError for damage."""
    match node:
        case None | bool() | int() | str():
            return node
        case ["float", str() as text]:
            return float.fromhex(text)
        case ["tensor", str() as dtype, plane] if f"torch.{dtype}" in map(str, DTYPES):
            return restore(dtype, plane)
        case ["list" | "tuple" | "dict" as kind, list() as parts] if depth:
            values = [decoded(part, restore, depth - 1) for part in cast("list[Any]", parts)]
            return dict(values) if kind == "dict" else tuple(values) if kind == "tuple" else values
        case _:
            raise ValueError(f"its extra state holds {str(node)[:80]}")


def give_back(path: object, model: nn.Module, states: Mapping[str, Any]) -> None:
    """Set the extra state of the modules at these paths.

    Raises FileFormatError for a module that is missing or takes no such state. Those that were set have the old one again.
    """
    before: list[tuple[nn.Module, Any]] = []
    for name, state in states.items():
        try:
            module = model.get_submodule(name)
            if not _overrides(module, "set_extra_state"):
                raise AttributeError("it takes none")
            before.append((module, module.get_extra_state()))
            module.set_extra_state(state)
        except Exception as error:  # whatever the user's method raises
            for owner, old in before:
                owner.set_extra_state(old)
            where = name or "the model itself"
            raise FileFormatError(f"{path}: is of another model: the extra state of {where} cannot be set: {error}.") from error


def _overrides(module: nn.Module, method: str) -> bool:
    return getattr(type(module), method) is not getattr(nn.Module, method)

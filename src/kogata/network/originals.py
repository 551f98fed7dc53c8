"""Code that a copy of a model shares with the model: functions that were made for the original and go on using its tensors.

A method works on copies of the user's model. ``copy.deepcopy`` copies tensors, modules and bound methods, but not functions and
weak references. A lambda over ``self``, or a ``forward`` wrapped by ``torch.no_grad``, ``torch.autocast`` or ``torch.compile``,
keeps the module that it was made for. A copy would run the original's weights, and every score would be that of the original.
"""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kogata.errors import DataError
from kogata.network.batch import call, evaluating
from kogata.network.nesting import leaves

MOST = 3  # names in a message


def refuse_shared_code(model: nn.Module, inputs: Any) -> None:
    """Raises DataError, naming the attribute, when a copy of ``model`` called on ``inputs`` uses ``model``'s tensors."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    names |= {id(tensor): name for name, tensor in model.named_buffers()}
    twin = copy.deepcopy(model, {id(tensor): _alias(tensor) for tensor in _tensors(model)})
    # Compiled code would hide its calls. Importing the compiler takes seconds, so that is left to models that use it.
    uncompiled = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with _Watch(names) as watch, uncompiled, evaluating(twin):
        call(twin, inputs)
    if not watch.seen:
        return
    held = ", ".join(list(_holders(model))[:MOST]) or "some function or hook"
    raise DataError(
        f"model: a copy of {type(model).__name__} runs the original's weights ({_listed(watch.seen)}), because {held} refers "
        "to the original by a function or a weak reference. No compressed copy could be measured. Define it as a method of the "
        "class; apply torch.no_grad, torch.autocast or torch.compile where the model is called, not to its forward."
    )


class _Watch(TorchFunctionMode):
    """Records which of the named tensors any function of PyTorch is called on."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names, self.seen = names, dict[str, None]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in leaves((args, kwargs or {})):
            if id(value) in self.names:
                self.seen[self.names[id(value)]] = None
        return func(*args, **(kwargs or {}))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor object with the same memory."""
    alias = tensor.detach()
    return nn.Parameter(alias, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else alias


def _holders(model: nn.Module) -> Iterator[str]:
    """The attributes and hooks of the model's modules that reach a module of the model through a function, such as ``act``."""
    modules = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            hooks = key.endswith("_hooks") and isinstance(value, Mapping)
            held = list(cast("Mapping[Any, Any]", value).values()) if hooks else [value]
            if any(not _copied(each) and _reaches(each, modules, 0) for each in held):
                yield repr(f"{path}.{key.lstrip('_')}".lstrip("."))


def _copied(value: Any) -> bool:
    """Whether ``copy.deepcopy`` copies what the value refers to; it does for bound methods."""
    return isinstance(value, MethodType) or not callable(value) or isinstance(value, nn.Module)


def _reaches(value: Any, modules: set[int], depth: int) -> bool:
    """Whether a function holds one of the modules: in its closure, its defaults, or what it wraps or is bound to."""
    if id(value) in modules:
        return True
    if depth > 6:
        return False
    parts = list[Any]()
    if isinstance(value, MethodType):
        parts += [value.__self__, value.__func__]
    elif isinstance(value, weakref.ReferenceType):
        parts.append(cast("weakref.ReferenceType[Any]", value)())
    elif isinstance(value, functools.partial):
        made = cast("functools.partial[Any]", value)
        parts += [made.func, *made.args, *made.keywords.values()]
    elif isinstance(value, FunctionType):
        parts += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        parts += [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    return any(_reaches(part, modules, depth + 1) for part in parts)


def _filled(cell: Any) -> bool:
    try:
        return bool(cell.cell_contents is not None)
    except ValueError:  # a variable that has not been assigned yet
        return False


def _listed(names: Mapping[str, None]) -> str:
    first = list(names)[:MOST]
    return ", ".join(first) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")

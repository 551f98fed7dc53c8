"""Attributes that a forward sets on its modules, kept apart for batches that run through the same modules in turn.

A forward may keep something on ``self`` for its later layers, such as a skip connection of a U-Net. Batches that take turns
within one forward would read what another batch has left there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, MutableMapping
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

from torch import Tensor, nn

from kogata.forms import Form
from kogata.network.nesting import leaves

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_GONE = object()  # the value of an attribute that a batch has deleted
_Place = tuple[int, str]  # the number of a namespace, and a name in it


class Apart:
    """The attributes of one batch: what it has set, replaced or deleted on the modules. Weights are shared with all others.

    Lists, dictionaries and sets that hold no tensors at first are copied, so that a batch may fill its own.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        modules = {id(module): module for model in models for module in model.modules() if _keeps(module)}
        self._spaces: list[MutableMapping[str, Any]] = [
            space for module in modules.values() for space in (vars(module), vars(module)["_buffers"])
        ]
        self._own: dict[_Place, Any] = {}
        for number, space in enumerate(self._spaces):
            for name, value in space.items():
                if name not in _OF_EVERY_MODULE and isinstance(value, list | dict | set | deque) and not _holds_tensors(value):
                    self._own[number, name] = copy(cast("Any", value))

    @contextmanager
    def installed(self) -> Generator[None, None, None]:
        """The modules as this batch has left them; afterwards they are as before, and what changed is remembered."""
        before = [dict(space) for space in self._spaces]
        for (number, name), value in self._own.items():
            _set(self._spaces[number], name, value)
        try:
            yield
        finally:
            for number, (space, old) in enumerate(zip(self._spaces, before, strict=True)):
                changed = {name: space.get(name, _GONE) for name in old.keys() | space.keys() if not _same(space, old, name)}
                for name in changed.keys() - _OF_EVERY_MODULE:
                    self._own[number, name] = changed[name]
                    _set(space, name, old.get(name, _GONE))


def _keeps(module: nn.Module) -> bool:
    """Whether a module may keep something: PyTorch's own layers and forms do not, unless a hook does it for them."""
    hooks = vars(module)["_forward_hooks"] or vars(module)["_forward_pre_hooks"]
    own = type(module).forward.__module__.startswith("torch.nn.") and "forward" not in vars(module)
    return not isinstance(module, Form) and (bool(hooks) or not own)


def _holds_tensors(value: Any) -> bool:
    parts = list(cast("Iterable[Any]", value)) if isinstance(value, set | deque) else value
    return any(isinstance(part, Tensor | nn.Module) for part in leaves(parts))


def _same(space: MutableMapping[str, Any], old: MutableMapping[str, Any], name: str) -> bool:
    return name in space and name in old and space[name] is old[name]


def _set(space: MutableMapping[str, Any], name: str, value: Any) -> None:
    if value is _GONE:
        space.pop(name, None)
    else:
        space[name] = value

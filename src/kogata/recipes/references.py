"""Classes that a recipe or a command names as ``package.module:Class``: methods, terms and forms of other packages.

The module is imported in the ordinary way: its package must be installed, or its folder must be in ``PYTHONPATH``. Importing
runs the code of the module, so use a recipe that names classes only if you trust it like a program.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping
from enum import Enum
from functools import reduce
from types import ModuleType, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from kogata.errors import UsageError
from kogata.methods.base.method import About, Method
from kogata.settings import alternatives

Named = TypeVar("Named")


def imported(reference: str, base: type[Named], where: str) -> type[Named]:
    """Import ``package.module:Class``, a concrete class derived from ``base``.

    Raises UsageError, starting with ``where``, otherwise.
    """
    place = f"{where} {reference!r}"
    path, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), *name.split("."))):
        raise UsageError(f"{place} is not a class; expected package.module:Class.")
    kind = _found(_module(path, place), name, base, place)
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise UsageError(f"{place} is {_kind(kind)}; expected a subclass of {_path(base)}.")
    if inspect.isabstract(kind):
        missing = [name for name, part in inspect.getmembers(kind) if getattr(part, "__isabstractmethod__", False)]
        raise UsageError(f"{place} is abstract; expected a class that also implements {', '.join(missing)}.")
    return kind


def of_recipe(reference: str, base: type[Named], where: str) -> type[Named]:
    """The same, for a class with settings that YAML can hold; a method must have an ABOUT."""
    kind, place = imported(reference, base, where), f"{where} {reference!r}"
    if issubclass(kind, Method):
        about = getattr(kind, "ABOUT", None)
        if not isinstance(about, About):
            found = "lacks ABOUT" if about is None else f"has {_kind(about)} as ABOUT"
            raise UsageError(f"{place} {found}; give the class ABOUT = {About.__name__}(name=..., ...) of {About.__module__}.")
    _check_fields(kind, place)
    return kind


def _module(path: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
        raise UsageError(
            f"{place}: importing {path} failed with {reason}. Install its package, or name its folder in PYTHONPATH."
            if isinstance(error, ModuleNotFoundError)
            else f"{place}: importing {path} failed with {reason}. Fix the module."
        ) from error


def _found(module: ModuleType, name: str, base: type[Any], place: str) -> object:
    try:
        return reduce(lambda owner, part: vars(owner)[part], name.split("."), module)
    except (KeyError, TypeError):
        names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        ours = [key for key in names if vars(module)[key].__module__ == module.__name__]
        close = difflib.get_close_matches(name, ours, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"its subclasses of {base.__name__}: {', '.join(ours) or 'none'}."
        raise UsageError(f"{place}: {module.__name__} has no {name}; {hint}") from None


def _check_fields(kind: type[Any], place: str) -> None:
    """Raises UsageError unless the class is a dataclass with fields that YAML can hold."""
    if "__dataclass_fields__" not in vars(kind):
        raise UsageError(f"{place} is not a dataclass; put @dataclass(frozen=True, kw_only=True) above the class.")
    try:
        hints = get_type_hints(kind)
    except (NameError, TypeError) as error:
        raise UsageError(f"{place}: the types of its fields cannot be read: {error}.") from error
    for field in dataclasses.fields(kind):
        if field.init and not _plain(hints[field.name]):
            raise UsageError(
                f"{place}: its field {field.name} is of type {inspect.formatannotation(hints[field.name])}, which a recipe "
                "cannot write; expected numbers, texts, true or false, choices, tuples of them, or dataclasses of settings."
            )


def _plain(hint: Any) -> bool:
    """Whether YAML can hold a value of this type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (tuple, list, dict, Mapping):
        return all(each is Ellipsis or _plain(each) for each in arguments)
    if len(members := alternatives(hint)) > 1:
        return all(map(_plain, members))
    if origin is Literal or hint in (int, float, bool, str, NoneType):
        return True
    return isinstance(hint, type) and (issubclass(hint, Enum) or dataclasses.is_dataclass(hint))


def _kind(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

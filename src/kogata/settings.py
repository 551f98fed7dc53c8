"""Settings: the type and range of each setting are declared with its field. Checks and documentation read them from there.

    >>> from dataclasses import dataclass
    >>> from typing import Annotated
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Rounding:
    ...     bits: Annotated[int, Range(ge=1, le=8)]
    ...     group: Annotated[int, Range(ge=1)] | None = None
    >>> refusal(Rounding(bits=4))
    ''
    >>> refusal(Rounding(bits=9))
    'bits is 9; expected 1 to 8.'
    >>> refusal(Rounding(bits=4, group=0.5))
    'group is 0.5; expected 1 or more (a whole number), or null.'

Every method and every term of a loss checks its settings in this way. Its own ``__post_init__`` only adds conditions between
several fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kogata.errors import UsageError

BYTES: Mapping[str, float] = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
POINTS: Mapping[str, float] = {"pt": 1.0}


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of finite numbers: at least ``ge`` or above ``gt``, and at most ``le`` or below ``lt``.

    It is written beside the type in ``Annotated``. ``example`` is a sensible value, for messages. In a union of several types,
    each with a range, a value must be in the range of its own type.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    example: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number lies in the range; NaN and infinity lie in none."""
        return (
            math.isfinite(number)
            and (self.ge is None or number >= self.ge) and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le) and (self.lt is None or number < self.lt)
        )  # fmt: skip

    def words(self) -> str:
        """The range in words, for messages.

        >>> Range(ge=0, lt=1, example=0.9).words(), Range(gt=0, le=1).words(), Range(ge=1).words()
        ('0 to below 1, such as 0.9', 'above 0 and at most 1', '1 or more')
        """
        low = _digits(self.ge) if self.gt is None else f"above {_digits(self.gt)}"
        high = _digits(self.le) if self.lt is None else f"below {_digits(self.lt)}"
        if low and high and self.gt is not None:
            words = f"{low} and {'at most ' if self.lt is None else ''}{high}"
        elif low and high:
            words = f"{low} to {high}"
        elif low:
            words = f"more than {_digits(self.gt)}" if self.gt is not None else f"{low} or more"
        else:
            words = high if self.lt is not None else f"at most {high}"
        return words if self.example is None else f"{words}, such as {self.example:g}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a dataclass of settings, described for tables and programs."""

    name: str
    type: str
    allowed: str
    required: bool
    default: Any = None


def refusal(settings: object) -> str:
    """Why the settings of a dataclass are not allowed: names the first field outside its type or range. Empty if all are."""
    hints = _hints(type(settings))
    reasons = (_reason(name, getattr(settings, name), hint) for name, hint in hints.items())
    return next((reason for reason in reasons if reason), "")


def check(settings: object, title: str) -> None:
    """Raises UsageError, naming the title, the field and the allowed range, when a field is outside its type or range."""
    if reason := refusal(settings):
        raise UsageError(f"{title}: {reason}")


def check_value(title: str, name: str, value: object, hint: Any) -> None:
    """Raises UsageError when a single value, such as an argument, is outside the type or annotated range ``hint``."""
    if reason := _reason(name, value, hint):
        raise UsageError(f"{title}: {reason}")


def described(kind: type[Any]) -> tuple[Setting, ...]:
    """The fields that the constructor of a dataclass takes, in order."""
    hints = _hints(kind)
    return tuple(_setting(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def reference(kind: type, name: str) -> str:
    """How a recipe names a class: by its short name if it comes with Kogata, otherwise as ``package.module:Class``."""
    ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return name if ours else f"{kind.__module__}:{kind.__qualname__}"


def amount(text: str, units: Mapping[str, float]) -> tuple[float, bool] | None:
    """The number that a text states in one of ``units``, such as ``2.3MB``, or as a share, ``1/20`` or ``5%``.

    The second value says whether it is a share. None is returned for any other text. Without a unit it is no amount.

    >>> amount("2.5 kB", {"B": 1, "kB": 1e3}), amount("1/20", {}), amount("20 apples", {"B": 1})
    ((2500.0, False), (0.05, True), None)
    """
    number = r"(\d+(?:\.\d+)?)"
    if match := re.fullmatch(rf"{number}\s*%", text):
        return float(match[1]) / 100, True
    if (match := re.fullmatch(rf"{number}/{number}", text)) and float(match[2]):
        return float(match[1]) / float(match[2]), True
    if (match := re.fullmatch(rf"{number}\s*([a-zA-Z]+)", text)) and match[2] in units:
        return float(match[1]) * units[match[2]], False
    return None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union type; any other type is its only member."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of the fields, ranges included."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _setting(field: dataclasses.Field[Any], hint: Any) -> Setting:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    return Setting(
        name=field.name, type=_words(hint, ranges=False), allowed=_words(hint), required=required,
        default=None if required else default,
    )  # fmt: skip


def _reason(name: str, value: object, hint: Any) -> str:
    if _allows(hint, value):
        return ""
    return f"{name} is {value!r}; expected {_words(hint, types=not _allows(hint, value, ranges=False))}."


def _allows(hint: Any, value: object, *, ranges: bool = True) -> bool:
    """Whether a value has the type and lies in its range; types that settings do not use are not checked further."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [part for part in arguments[1:] if isinstance(part, Range)] if ranges else []
        return _allows(arguments[0], value, ranges=ranges) and all(part.holds(_number(value)) for part in bounds)
    if origin in (Union, UnionType):
        return any(_allows(each, value, ranges=ranges) for each in arguments)
    if origin is Literal:
        return any(isinstance(value, type(each)) and value == each for each in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _allows_each(arguments, value, ranges)
    if hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (hint is float and isinstance(value, float) and not math.isnan(value))
    return not isinstance(hint, type) or isinstance(value, hint)


def _allows_each(hints: tuple[Any, ...], values: tuple[object, ...], ranges: bool) -> bool:
    """Whether each value of a tuple is allowed, for tuple types ``X, ...`` and for those with one type for each position."""
    if hints[-1] is Ellipsis:
        return all(_allows(hints[0], value, ranges=ranges) for value in values)
    return len(hints) == len(values) and all(map(lambda hint, value: _allows(hint, value, ranges=ranges), hints, values))


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else math.nan


def _words(hint: Any, *, ranges: bool = True, types: bool = False) -> str:
    """The values that a type allows, in words; ``types`` adds the type of the numbers to each range."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = _words(arguments[0], ranges=ranges)
        bounds = [part.words() for part in arguments[1:] if isinstance(part, Range)] if ranges else []
        return f"{' and '.join(bounds)}{f' ({inner})' if types else ''}" if bounds else inner
    if origin in (Union, UnionType):
        several = sum(get_origin(each) is Annotated for each in arguments) > 1
        words = list(dict.fromkeys(_words(each, ranges=ranges, types=types or several) for each in arguments))
        return f"{', '.join(words[:-1])}{',' if ranges else ''} or {words[-1]}" if len(words) > 1 else words[0]
    if origin is Literal:
        return _choice([repr(each) for each in arguments])
    if origin is tuple:
        inner = ["..." if each is Ellipsis else _words(each, ranges=ranges) for each in arguments]
        return f"a tuple ({', '.join(inner)})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choice([repr(each.value) for each in hint]) + (f" ({hint.__name__})" if types else "")
    known = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return known.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint))


def _choice(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _digits(number: float | None) -> str:
    return "" if number is None else f"{number:,}" if isinstance(number, int) else f"{number:g}"

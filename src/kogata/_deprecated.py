"""How a public name goes: it warns for at least one minor version, then it is removed.

The warning says since when, what to use instead, and the version without the name. It is a ``DeprecationWarning``, which Python
shows in a user's own script and in tests, and hides where it comes from inside a library. CONTRIBUTING.md has the policy.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Deprecation:
    """What a user is told about a name that goes.

    >>> Deprecation(name="kogata.shrink", use="kogata.compress", since="0.2", gone="0.3").message
    'kogata.shrink is deprecated since kogata 0.2 and goes in 0.3; use kogata.compress instead.'

    :param name: the full public name, such as ``kogata.shrink``.
    :param use: what takes its place.
    :param since: the first version that warns.
    :param gone: the first version without the name; a later minor or major version than ``since``.
    :raises ValueError: ``gone`` is not at least one minor version after ``since``.
    """

    name: str
    use: str
    since: str
    gone: str

    def __post_init__(self) -> None:
        """Hold the policy: every name warns throughout at least one minor version."""
        if _minor(self.gone) <= _minor(self.since):
            raise ValueError(
                f"{self.name} warns since {self.since}, so it may go in the next minor or major version, not in {self.gone}"
            )

    @property
    def message(self) -> str:
        """One sentence with all of it."""
        return f"{self.name} is deprecated since kogata {self.since} and goes in {self.gone}; use {self.use} instead."

    def warn(self) -> None:
        """Warn the code that called the function which calls this method."""
        warnings.warn(self.message, DeprecationWarning, stacklevel=3)


def deprecated(deprecation: Deprecation) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that goes: each call warns at the line of its caller, then does what it always did.

    >>> @deprecated(Deprecation(name="kogata.twice", use="2 * x", since="0.2", gone="0.3"))
    ... def twice(x):
    ...     return 2 * x
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     twice(4), str(caught[0].message).partition(" is ")[0]
    (8, 'kogata.twice')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def warning(*args: P.args, **kwargs: P.kwargs) -> R:
            deprecation.warn()
            return function(*args, **kwargs)

        return warning

    return decorate


def deprecated_attributes(
    module: str, names: Mapping[str, tuple[Deprecation, Callable[[], object]]]
) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a module whose attributes go (PEP 562); any other name raises AttributeError as ever.

    The module must not define these names itself, and gives each value in a function, called when somebody asks for it:

    >>> old = Deprecation(name="kogata.coding.LIMIT", use="kogata.coding.MAX_SYMBOLS", since="0.2", gone="0.3")
    >>> __getattr__ = deprecated_attributes("kogata.coding", {"LIMIT": (old, lambda: 256)})
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     __getattr__("LIMIT"), len(caught)
    (256, 1)

    :param module: the module's ``__name__``.
    :param names: for each attribute what its users are told, and a function that returns its value.
    """

    def __getattr__(name: str) -> object:  # noqa: N807 - the module's own, under the name that Python looks for
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        deprecation, value = names[name]
        deprecation.warn()
        return value()

    return __getattr__


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)

"""Compile loops with numba, and keep the machine code on disk where that is possible.

Numba refuses to compile a function whose machine code it can keep nowhere: neither beside the source, nor in the user's home,
nor in ``NUMBA_CACHE_DIR``. Here such a function is compiled at each start instead, and a warning says so once.
"""

# numba's decorators are untyped
# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar, cast

import numba

log = logging.getLogger("kogata")

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_njit(
    *, parallel: bool = False, fastmath: bool | set[str] = False, inline: Literal["never", "always"] = "never",
) -> Callable[[Function], Function]:  # fmt: skip
    """``numba.njit`` that releases the interpreter lock and keeps the machine code on disk if it can.

    >>> import numpy as np
    >>> @cached_njit()
    ... def total(values):
    ...     return values.sum()
    >>> float(total(np.ones(3)))
    3.0
    """

    def compiled(function: Function) -> Function:
        settings: dict[str, Any] = {"nogil": True, "parallel": parallel, "fastmath": fastmath, "inline": inline}
        try:
            return cast("Function", numba.njit(cache=True, **settings)(function))
        except RuntimeError:  # no folder can be written to
            _warn()
            return cast("Function", numba.njit(**settings)(function))

    return compiled


@cache
def _warn() -> None:
    log.warning(
        "compiled loops cannot be kept, because no folder for them can be written to; each start compiles them again, which "
        "takes seconds. Set NUMBA_CACHE_DIR to a folder that you can write to."
    )

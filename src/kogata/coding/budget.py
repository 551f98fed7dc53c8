"""A limit on the memory and work that decoding may take, so that a damaged or hostile file cannot exhaust the machine."""

from __future__ import annotations

import math
from typing import NamedTuple

from kogata.errors import FileFormatError

WORK_PER_BYTE = 16  # operations allowed for each byte of the limit; a plane coded by context mixing takes 300 ns for each byte


class Cost(NamedTuple):
    """What an operation takes: bytes that stay in use afterwards, further bytes while it runs, and work in operations.

    One operation is about a nanosecond. Costs are estimates from above, computed without reserving memory.
    """

    keep: int = 0
    scratch: int = 0
    work: int = 0


class Budget:
    """Memory and work that a file may use. Whatever decodes it charges a cost here before it reserves memory or loops.

    ``limit`` is in bytes. ``WORK_PER_BYTE`` operations are allowed for each of them.

    >>> budget = Budget(1000)
    >>> budget.charge("a plane", Cost(keep=600))
    >>> budget.charge("a plane", Cost(keep=600))
    Traceback (most recent call last):
    kogata.errors.FileFormatError: a plane needs 1,200 bytes of memory in all, over the limit of 1,000 ...
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.limit, self.kept, self.work = limit, 0, 0

    def charge(self, what: str, cost: Cost) -> None:
        """Take a cost from the budget. Raises FileFormatError, which names ``what``, when the rest does not suffice."""
        peak, work = self.kept + cost.keep + cost.scratch, self.work + cost.work
        if peak > self.limit or work > WORK_PER_BYTE * self.limit:
            over = (
                f"{_number(peak)} bytes of memory in all, over the limit of {_number(self.limit)}" if peak > self.limit
                else f"{_number(work)} operations in all, over the limit of {_number(WORK_PER_BYTE * self.limit)}"
            )  # fmt: skip
            raise FileFormatError(
                f"{what} needs {over} for a file of this size. If you trust the file, raise the limit: pass max_bytes to "
                "kogata.load, or to whatever reads it."
            )
        self.kept, self.work = self.kept + cost.keep, work


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e18 else "more than 10^18"

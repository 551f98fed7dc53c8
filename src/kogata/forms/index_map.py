"""IndexMap: which entry of a smaller base an entry of a weight is, and with which sign."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor


def whole(name: str, value: int, least: int) -> None:
    """Raises ValueError unless a map's field, which a file may say, is a whole number from ``least`` to below 2³²."""
    if not (isinstance(value, int) and least <= value < 2**32):  # pyright: ignore[reportUnnecessaryIsInstance] - a file may say anything
        raise ValueError(f"{name} is {value!r}, expected a whole number from {least} to below 2**32")


class IndexMap(ABC):
    """Says which entry of the flattened base an entry of the tensor is, and with which sign.

    A map is a frozen dataclass of JSON values: it is computed from them and never stored.
    """

    TAG: ClassVar[str]  # names the map in files: never changed once released

    @abstractmethod
    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """Index (int32, in ``[0, size)``) and sign (int8), both of ``shape``, for a base of ``size`` entries.

        Signs are ±1, or 0 for an entry that is 0. The same on every platform. Raises ValueError when no tensor of ``shape``
        can be made of such a base.
        """

    def rows(self, outputs: int) -> tuple[Tensor, Tensor] | None:
        """Index (int64) and sign (int8) of each of ``outputs`` rows, where each is plus or minus a whole row of the base.

        None for a map that cuts or moves rows: what it ties cannot be computed once and copied.
        """
        return None

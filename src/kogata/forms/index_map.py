"""IndexMap: maps each entry of a weight to an entry of a smaller base tensor, with a sign."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor


def whole(name: str, value: int, least: int) -> None:
    """Raises ValueError unless the field ``name`` of a map, possibly read from a file, is an integer in [``least``, 2³²)."""
    if not (isinstance(value, int) and least <= value < 2**32):  # pyright: ignore[reportUnnecessaryIsInstance] - a file may say anything
        raise ValueError(f"{name} is {value!r}, expected a whole number from {least} to below 2**32")


class IndexMap(ABC):
    """Maps each entry of a tensor to an entry of the flattened base, with a sign.

    A map is a frozen dataclass of JSON values. Files store these values; the indices are computed from them. ``TAG`` names the
    map in files and must never change once released.
    """

    TAG: ClassVar[str]

    @abstractmethod
    def index(self, shape: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """Index (int32, in ``[0, size)``) and sign (int8), both of ``shape``, for a base of ``size`` entries.

        Signs are ±1, or 0 for an entry that is 0. The result is the same on every platform. Raises ValueError when a base of
        this size does not fit ``shape``.
        """

    def rows(self, outputs: int) -> tuple[Tensor, Tensor] | None:
        """Index (int64) and sign (int8), ``[outputs]``, where each row of the tensor is plus or minus a whole row of the base.

        The outputs of such a layer can be computed once for each row of the base and copied. None for all other maps.
        """
        return None

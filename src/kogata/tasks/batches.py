"""Batches of data that lies in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kogata.errors import DataError


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable over ``(inputs, targets)`` pairs of at most ``batch_size`` examples; the last may be smaller.

    The order of a shuffled pass comes from torch's global generator, so seeding that repeats it.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), batch_size=2, shuffle=False)
    >>> len(batches), [targets.tolist() for _, targets in batches]
    (3, [[0, 1], [2, 3], [4]])

    :param inputs: ``[N, ...]``.
    :param targets: ``[N, ...]``.
    :raises DataError: there are no examples, or not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    shuffle: bool

    def __post_init__(self) -> None:
        """Refuse what would make a pass silently do nothing or pair the wrong things."""
        if len(self.inputs) == 0:
            raise DataError("Batches: no examples; at least one is needed. Check what the data was read from.")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"Batches: {len(self.inputs)} inputs but {len(self.targets)} targets; expected as many.")

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass over the examples."""
        order = torch.randperm(len(self.inputs)) if self.shuffle else torch.arange(len(self.inputs))
        for index in order.split(self.batch_size):
            yield self.inputs[index], self.targets[index]

"""Batches of data that lies in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import DataError


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable over ``(inputs, targets)`` pairs of at most ``batch_size`` examples; the last may be smaller.

    The order of a shuffled pass comes from torch's global generator, so seeding that repeats it.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), batch_size=2, shuffle=False)
    >>> len(batches), [targets.tolist() for _, targets in batches]
    (3, [[0, 1], [2, 3], [4]])

    :param inputs: ``[N, ...]``; images ``[N, C, H, W]`` where they are shifted.
    :param shift: each image moves by up to so many pixels along each axis, at random, its edge pixels repeated.
    :param targets: ``[N, ...]``.
    :raises DataError: there are no examples, or not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    shuffle: bool
    shift: int = 0

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
            yield self._shifted(self.inputs[index]), self.targets[index]

    def _shifted(self, inputs_NCHW: Tensor) -> Tensor:
        if self.shift == 0:
            return inputs_NCHW
        height, width = inputs_NCHW.shape[2:]
        padded = functional.pad(inputs_NCHW, (self.shift,) * 4, mode="replicate")
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * self.shift + 1, (2, len(inputs_NCHW)))
        return windows[torch.arange(len(inputs_NCHW)), :, down, right]

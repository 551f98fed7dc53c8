"""Batches of data held in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import DataError


@dataclass(frozen=True)
class Normalization:
    """Normalizes images: values 0..255 are scaled to 0..1, then ``(value − mean) / deviation`` in each channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Return float32 images ``[N, C, H, W]`` from images of any dtype with values 0..255.

        >>> Normalization(mean=(0.5,), deviation=(0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[-2.0, 2.0]]]]
        """
        mean_C11, deviation_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.deviation))
        return (images_NCHW.float() / 255 - mean_C11) / deviation_C11


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable over ``(inputs, targets)`` pairs of at most ``batch_size`` examples; the last may be smaller.

    The order of a shuffled pass and the shifts of images come from torch's global generator; seed it to repeat them.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), batch_size=2, shuffle=False)
    >>> len(batches), [targets.tolist() for _, targets in batches]
    (3, [[0, 1], [2, 3], [4]])

    :param inputs: ``[N, ...]``; must be images ``[N, C, H, W]`` to be shifted, mirrored or normalized. Batches keep a
        channels-last memory format, in which convolutions on a CPU are faster.
    :param targets: ``[N, ...]``, with the N of the inputs.
    :param shift: each image is shifted at random by up to this many pixels along each axis; edge pixels are repeated.
    :param mirror: each image is mirrored left to right with probability ½.
    :param normalization: applied batch by batch, so that images can stay in memory as uint8.
    :raises DataError: there are no examples, or the numbers of inputs and targets differ.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    shuffle: bool
    shift: int = 0
    mirror: bool = False
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        """Refuse data that would make a pass do nothing or pair inputs with wrong targets."""
        if len(self.inputs) == 0:
            raise DataError("Batches: no examples; at least one is needed. Check what the data was read from.")
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"Batches: {len(self.inputs)} inputs but {len(self.targets)} targets; expected one target for each input."
            )

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass over the examples."""
        order = torch.randperm(len(self.inputs)) if self.shuffle else torch.arange(len(self.inputs))
        for index in order.split(self.batch_size):
            inputs = self.inputs[index]
            if self.normalization is not None:
                inputs = self.normalization(inputs)
            yield self._laid(self._mirrored(self._shifted(inputs))), self.targets[index]

    def _shifted(self, inputs_NCHW: Tensor) -> Tensor:
        if self.shift == 0:
            return inputs_NCHW
        height, width = inputs_NCHW.shape[2:]
        padded = functional.pad(inputs_NCHW, (self.shift,) * 4, mode="replicate")
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * self.shift + 1, (2, len(inputs_NCHW)))
        return windows[torch.arange(len(inputs_NCHW)), :, down, right]

    def _mirrored(self, inputs_NCHW: Tensor) -> Tensor:
        if not self.mirror:
            return inputs_NCHW
        chosen_N111 = torch.randint(2, (len(inputs_NCHW), 1, 1, 1)).bool()
        return torch.where(chosen_N111, inputs_NCHW.flip(3), inputs_NCHW)

    def _laid(self, inputs: Tensor) -> Tensor:
        images = self.inputs.ndim == 4 and self.inputs.is_contiguous(memory_format=torch.channels_last)
        return inputs.contiguous(memory_format=torch.channels_last) if images else inputs

"""Batches over tensors: every example once, the order decided by the seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kogata.errors import DataError
from kogata.tasks.batches import Batches, Normalization


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), shuffle=st.booleans())
def test_every_example_once_with_its_target(count: int, batch_size: int, shuffle: bool):
    batches = Batches(torch.arange(float(count)), torch.arange(count), batch_size, shuffle)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert all(len(targets) == batch_size for _, targets in parts[:-1])
    inputs, targets = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    assert torch.equal(inputs.long(), targets)
    assert targets.sort().values.tolist() == list(range(count))


def test_the_seed_decides_the_order():
    batches = Batches(torch.arange(100), torch.arange(100), 10, shuffle=True)

    def order(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([targets for _, targets in batches]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_nothing_to_iterate_is_refused():
    with pytest.raises(DataError, match="no examples"):
        Batches(torch.empty(0, 4), torch.empty(0), 10, shuffle=False)


def test_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="3 inputs but 2 targets"):
        Batches(torch.zeros(3), torch.zeros(2), 10, shuffle=False)


NORMALIZATION = Normalization(mean=(0.1, 0.2, 0.3), deviation=(0.5, 0.25, 2.0))


def test_images_are_normalized_per_channel():
    images_NCHW = torch.randint(256, (7, 3, 4, 5), dtype=torch.uint8)
    ((inputs, _),) = Batches(images_NCHW, torch.arange(7), 7, shuffle=False, normalization=NORMALIZATION)
    assert inputs.dtype == torch.float32
    for channel, (mean, deviation) in enumerate(zip(NORMALIZATION.mean, NORMALIZATION.deviation, strict=True)):
        expected = [(value / 255 - mean) / deviation for value in images_NCHW[:, channel].flatten().tolist()]
        torch.testing.assert_close(inputs[:, channel].flatten(), torch.tensor(expected))


def moved(image_CHW: torch.Tensor, shift: int) -> list[torch.Tensor]:
    """Every image that may come of one, by brute force: what lies outside is as the nearest pixel."""
    _, height, width = image_CHW.shape
    results: list[torch.Tensor] = []
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            rows = [min(max(row + down, 0), height - 1) for row in range(height)]
            columns = [min(max(column + right, 0), width - 1) for column in range(width)]
            image = image_CHW[:, rows][:, :, columns]
            results += [image, image[:, :, list(reversed(range(width)))]]
    return results


def test_every_shift_and_mirror_image_comes_as_often():
    torch.manual_seed(0)
    image_CHW = torch.rand(3, 4, 5)
    copies = 18_000
    batches = Batches(image_CHW.expand(copies, 3, 4, 5), torch.zeros(copies), 900, shuffle=False, shift=1, mirror=True)
    candidates = torch.stack(moved(image_CHW, 1)).flatten(1)
    seen = torch.cat([inputs for inputs, _ in batches]).flatten(1)
    counts = (seen[:, None] == candidates).all(2).sum(0)
    assert counts.sum() == copies, "nothing else comes"
    expected = copies / 18
    assert ((counts - expected) ** 2 / expected).sum() < 40.8, "χ² with 17 degrees of freedom, 1 in 1,000"


def test_a_pass_that_moves_images_repeats_with_its_seed():
    images_NCHW = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    batches = Batches(images_NCHW, torch.arange(50), 16, shuffle=True, shift=4, mirror=True, normalization=NORMALIZATION)

    def once(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([inputs for inputs, _ in batches])

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_images_that_lie_channels_last_stay_so():
    images_NCHW = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)

    def once(images_NCHW: torch.Tensor) -> list[torch.Tensor]:
        batches = Batches(images_NCHW, torch.arange(50), 16, shuffle=True, shift=4, mirror=True, normalization=NORMALIZATION)
        torch.manual_seed(0)
        return [inputs for inputs, _ in batches]

    last = once(images_NCHW.contiguous(memory_format=torch.channels_last))
    assert all(inputs.is_contiguous(memory_format=torch.channels_last) for inputs in last)
    assert all(map(torch.equal, last, once(images_NCHW)))
    assert not any(inputs.is_contiguous(memory_format=torch.channels_last) for inputs in once(images_NCHW))

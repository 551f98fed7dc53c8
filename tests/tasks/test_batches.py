"""Batches over tensors: every example once, the order decided by the seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kogata.errors import DataError
from kogata.tasks.batches import Batches


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

"""Tiny models are fastest, and give the same bits, on one thread."""

import dataclasses
import gc

import pytest
import torch

from kogata.engines import ONNXRUNTIME, Costs


def pytest_collection_finish() -> None:
    """Thousands of tests are collected: garbage collection need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def by_products() -> Costs:
    """Costs under which convolutions of a few channels become cheaper too: moving activations is free, only products count."""
    return dataclasses.replace(ONNXRUNTIME, move=0)

"""Tiny models are fastest, and give the same bits, on one thread."""

import dataclasses
import functools
import gc
from collections.abc import Iterator

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from kogata.engines import ONNXRUNTIME, Costs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the work out under ``--dist loadgroup``: a worker takes one group after another, whose tests share what they made.

    A group is a file, or all that the contract asks of one method. Methods come last: they are many and take seconds each, so
    that all workers end at about the same time.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_method(item) or item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: _method(item) is not None)


def _method(item: pytest.Item) -> str | None:
    """The name of the method that a test of the contract is about, if it is about one."""
    if item.path.parent.name != "contract" or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return None
    return next((value.__name__ for value in item.callspec.params.values() if isinstance(value, type)), None)


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


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators() -> Iterator[None]:
    """PyTorch builds the table of its ONNX operators anew for each export, which is more than half the time of a small one.

    An export of ours only reads the table, so all can share it.
    """
    with pytest.MonkeyPatch.context() as patch:
        shared = functools.cache(_registration.ONNXRegistry.from_torchlib)
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(shared))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # torch.manual_seed would also format the call stack, for the sake of GPUs, which takes longer than many a test
    torch.default_generator.manual_seed(0)


@pytest.fixture
def by_products() -> Costs:
    """Costs under which convolutions of a few channels become cheaper too: moving activations is free, only products count."""
    return dataclasses.replace(ONNXRUNTIME, move=0)

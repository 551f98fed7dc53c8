"""Freed memory, handed back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator
from pathlib import Path

import torch

PYTORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
MMAP_THRESHOLD = -3  # of mallopt
SMALL, LARGE = 128 << 10, 32 << 20  # bytes: where glibc begins, and how far it goes by itself as large blocks are freed


def release() -> None:
    """Hand back what the C library and MKL keep for later.

    Both keep memory for each thread, and calibration has a thread for each batch: without this, what they have freed would
    add up to several models. Other libraries have no such functions, and keep less.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(str(PYTORCH)).mkl_serv_free_buffers()
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def returned() -> Generator[None, None, None]:
    """Within this, a tensor of any size worth mentioning goes back to the system when it is freed.

    glibc would raise that size to 32 MiB and keep what is smaller, in pieces that the next tensor may not fit into. There it
    is again afterwards, which costs training less.
    """
    _threshold(SMALL)
    try:
        yield
    finally:
        _threshold(LARGE)


def _threshold(size: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, size)

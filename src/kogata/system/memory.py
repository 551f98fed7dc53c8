"""Return freed memory to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator
from pathlib import Path

import torch

PYTORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h
SMALL, LARGE = 128 << 10, 32 << 20  # bytes: glibc's initial threshold, and the highest to which it raises it by itself


def release() -> None:
    """Return to the system the freed memory that the C library and MKL cache for reuse.

    Both cache memory per thread, and calibration uses one thread per batch, so the caches would add up to the size of several
    models. Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(str(PYTORCH)).mkl_serv_free_buffers()
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def returned() -> Generator[None, None, None]:
    """Within this context, the memory of tensors of 128 KiB or more is returned to the system as soon as they are freed.

    By itself glibc raises this threshold to 32 MiB and caches smaller blocks, which fragments memory. The threshold is 32 MiB
    again afterwards, because training is faster with cached blocks.
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

"""Return freed memory to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator
from pathlib import Path

import torch

PYTORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
M_MMAP_THRESHOLD = -3  # the parameter of mallopt (malloc.h): blocks of at least so many bytes are mapped one by one
INITIAL_THRESHOLD = 128 << 10  # bytes: where glibc begins
LARGEST_THRESHOLD = 32 << 20  # bytes: where glibc's own adjustment ends in a process that frees large blocks (64-bit systems)


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
    """Within this, the memory of every tensor of 128 KiB or more goes back to the system when the tensor is freed.

    By itself, glibc raises that threshold to the size of the largest block freed so far, up to 32 MiB, and keeps what is
    smaller for later, in pieces that the next tensor may not fit into.

    The threshold belongs to the whole process: the C library has one for all threads. It can neither be read nor handed back
    to glibc's own adjustment once it has been set. Afterwards it is therefore set to where that adjustment ends, which is
    where a process that has freed a large tensor already was; training, which asks for the same sizes again and again, is
    faster there.
    """
    _set_threshold(INITIAL_THRESHOLD)
    try:
        yield
    finally:
        _set_threshold(LARGEST_THRESHOLD)


def _set_threshold(size: int) -> None:
    """In bytes; nothing happens where the C library has no such function."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)

"""Freed memory, handed back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def release() -> None:
    """Hand back what the C library keeps for later.

    glibc keeps a heap for each thread, and calibration has a thread for each batch: without this, their freed activations
    would add up to several models.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries have no such function, and keep less
            ctypes.CDLL(None).malloc_trim(0)

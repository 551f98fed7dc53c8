"""Try an action that may end the whole process: native code of other libraries can crash where it should raise."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
import warnings
from collections.abc import Callable

PATIENCE = 120.0  # seconds; a copy that takes longer tells nothing
PAUSE = 0.002  # seconds between two looks


def crash_of(action: Callable[[], object]) -> str | None:
    """The signal, such as ``SIGSEGV``, that ends a copy of this process when it runs ``action``; None if it survives.

    The copy is a fork: what ``action`` does stays in it, exceptions included. Systems that cannot fork try nothing.

    >>> crash_of(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    'SIGSEGV'
    >>> crash_of(lambda: 1 / 0) is None
    True
    """
    if not hasattr(os, "fork"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads are not copied; the action needs none of them
        child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            action()
        finally:
            os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(PAUSE)
    return signal.Signals(os.WTERMSIG(found[1])).name if os.WIFSIGNALED(found[1]) else None

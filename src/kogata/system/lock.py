"""A lock on a folder, which the system releases when the process that holds it ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from kogata.errors import UsageError

log = logging.getLogger("kogata")

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on an existing folder while the body runs. It leaves no file behind.

    Raises UsageError when another process holds it. Where the file system has no locks, a warning says so and the body runs.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     pass
    """
    if sys.platform == "win32":  # folders cannot be locked there
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            os.close(descriptor)
            raise UsageError(
                f"{folder}: another process is working in this folder. Wait until it ends or stop it, then repeat the command; "
                "or choose another folder with -o."
            ) from None
        log.warning("%s: cannot be locked (%s); start no second run in this folder.", folder, error.strerror)
    try:
        yield
    finally:
        os.close(descriptor)

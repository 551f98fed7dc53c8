"""Write files atomically: a file appears complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kogata.errors import DataError

PART = ".part"  # ends the name of a file that is still being written


@contextmanager
def writing(path: Path) -> Generator[IO[bytes], None, None]:
    """Open a temporary file beside ``path``; it replaces ``path`` if the body succeeds and is deleted if the body raises.

    Raises DataError when the folder cannot be written to or the disk is full; an existing file is then left unchanged.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "new", "example.bin")
    ...     with writing(path) as file:
    ...         _ = file.write(b"abc")
    ...     path.read_bytes()
    b'abc'
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write {path}: {reason}. Free space or choose another folder with -o.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what processes killed inside :func:`writing` left in ``folder``. No process may be writing there."""
    for file in folder.glob(f".*.*{PART}"):
        file.unlink(missing_ok=True)

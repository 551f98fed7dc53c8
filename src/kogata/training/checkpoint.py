"""The checkpoint of a training: a file of PyTorch followed by its SHA-256, so that a changed bit is found, not trained on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import IO, Any, cast

import torch

from kogata.system.atomic import writing

DIGEST = hashlib.sha256().digest_size


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` whole or not at all. Raises OSError when the disk is full."""
    with writing(path) as file:
        written = _Written(file)
        try:
            torch.save(state, cast("IO[bytes]", written))
        except RuntimeError as error:  # torch hides the error of a full disk behind its own
            raise written.error or error from error
        file.write(written.digest.digest())


def load(path: Path) -> dict[str, Any]:
    """The state that was saved. Raises ValueError when a byte of the file has changed or is missing."""
    data = path.read_bytes()
    state, digest = memoryview(data)[:-DIGEST], data[-DIGEST:]
    if hashlib.sha256(state).digest() != digest:
        raise ValueError("its checksum does not match")
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


class _Written:
    """A file that remembers the digest of what went in, and why a write failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write to the file."""
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()

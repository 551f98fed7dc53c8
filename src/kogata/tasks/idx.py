"""The IDX format of the MNIST family: two zero bytes, a type code, the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values. Only unsigned bytes (type 0x08) are read.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import hashlib
import math
import struct
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kogata.errors import DataError

MAX_BYTES = 1 << 30  # far above any set of this family; stops damaged or hostile headers

UNSIGNED_BYTE = 0x08
REMEDY = "Replace it, or delete it so that it is searched elsewhere."


def read_idx(path: Path, sha256: str | None = None) -> npt.NDArray[np.uint8]:
    """Read a raw or gzipped (``.gz``) IDX file of unsigned bytes.

    Memory is bounded by the size in the header (at most 1 GiB), however far a gzip stream would expand.

    :param sha256: if given, the digest that the decompressed file must have.
    :returns: a uint8 array of the shape in the header.
    :raises DataError: the file cannot be read, is damaged, or has another digest; the message names the file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(path).tolist()
    [7, 8, 9]
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header, shape = _read_header(stream, path)
            size = math.prod(shape)
            body = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error}). {REMEDY}") from error
    if len(body) != size:
        found = f"only {len(body)}" if len(body) < size else "more"
        raise DataError(f"{path}: its header announces {size} values, it holds {found}. {REMEDY}")
    if sha256 is not None and (digest := hashlib.sha256(header + body).hexdigest()) != sha256:
        raise DataError(
            f"{path}: not the published data: SHA-256 of its decompressed content is {digest}, expected {sha256}. {REMEDY}"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read_header(stream: gzip.GzipFile | BufferedReader, path: Path) -> tuple[bytes, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != UNSIGNED_BYTE or magic[3] == 0:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes: it starts with {magic.hex() or 'nothing'}, "
            f"expected 000008 and the number of dimensions. {REMEDY}"
        )
    rank = magic[3]
    packed = stream.read(4 * rank)
    if len(packed) != 4 * rank:
        raise DataError(f"{path}: ends within its header, which announces {rank} dimensions. {REMEDY}")
    shape = struct.unpack(f">{rank}I", packed)
    if math.prod(shape) > MAX_BYTES:
        raise DataError(f"{path}: its header announces shape {shape}, over the limit of {MAX_BYTES} bytes. {REMEDY}")
    return magic + packed, shape

"""Store tensors that take long to compute in a file with a checksum, and read them again."""

import hashlib
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kogata.errors import DataError
from kogata.system.atomic import writing

log = logging.getLogger("kogata")


def read_kept(path: Path, otherwise: str) -> dict[str, Tensor] | None:
    """Return the tensors that `keep` wrote. None when there is no file, or it is damaged, which is logged as a warning.

    :param otherwise: what the caller does if the file is damaged, for the warning.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if (file.metadata() or {}).get("sha256") == _digest(tensors):
                return tensors
    except (OSError, SafetensorError):
        pass  # logged below
    log.warning("%s is damaged: %s", path, otherwise)
    return None


def keep(path: Path, tensors: dict[str, Tensor], otherwise: str) -> None:
    """Write CPU tensors. A failure is only logged, because the tensors can be computed again.

    :param otherwise: the consequence of a failure, for the warning.
    """
    try:
        with writing(path) as file:
            file.write(save(tensors, metadata={"sha256": _digest(tensors)}))
    except DataError as error:
        log.warning("%s %s", error, otherwise)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()

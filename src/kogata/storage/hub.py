"""Save and load a folder that holds a ``.kogata`` file, with the function names that model hubs use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from kogata.forms import Form
from kogata.storage.load import load
from kogata.storage.write import pack, write_file

FILE = "model.kogata"


def save_pretrained(model: nn.Module, folder: Path | str) -> Path:
    """Write ``folder/model.kogata``, without an engine graph, and return its path. Raises as :func:`kogata.save` does.

    >>> import tempfile, torch, kogata
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kogata.save_pretrained(torch.nn.Linear(3, 2), folder).name
    'model.kogata'
    """
    path = Path(folder) / FILE
    write_file(path, pack(model))
    return path


def from_pretrained(
    folder: Path | str, into: nn.Module, *, forms: Sequence[type[Form]] = (), max_bytes: int | None = None
) -> nn.Module:
    """Load ``folder/model.kogata`` into the model ``into`` and return it. See :func:`kogata.load` for arguments and errors.

    >>> import tempfile, torch, kogata
    >>> net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = kogata.save_pretrained(net, folder)
    ...     torch.equal(kogata.from_pretrained(folder, into=other).weight, net.weight)
    True
    """
    return load(Path(folder) / FILE, into, forms=forms, max_bytes=max_bytes)

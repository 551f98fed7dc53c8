"""The two verbs of model hubs: a folder with the file in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from kogata.forms import Form
from kogata.storage.load import load
from kogata.storage.write import pack, write_file

FILE = "model.kogata"


def save_pretrained(model: nn.Module, folder: Path | str) -> Path:
    """Write ``folder/model.kogata``, without an engine graph, and return its path."""
    path = Path(folder) / FILE
    write_file(path, pack(model))
    return path


def from_pretrained(folder: Path | str, into: nn.Module, *, forms: Sequence[type[Form]] = ()) -> nn.Module:
    """Give ``into`` the weights of ``folder/model.kogata``; see :func:`kogata.load`."""
    return load(Path(folder) / FILE, into, forms=forms)

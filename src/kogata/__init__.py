"""Kogata makes trained neural networks small and fast, and proves it.

Names are imported when first used, so that ``import kogata`` and ``kogata --help`` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kogata._version import __version__

if TYPE_CHECKING:
    from kogata.calibration.prepare import prepare
    from kogata.engines.lowering.lower import lower
    from kogata.engines.onnxruntime import open, run
    from kogata.flow import Result, compress
    from kogata.job import Task, Where
    from kogata.methods.base.compose import chain, only, per_site
    from kogata.network.surgery import plain
    from kogata.storage.hub import from_pretrained, save_pretrained
    from kogata.storage.load import load
    from kogata.storage.write import save

__all__ = [
    "Result", "Task", "Where", "__version__", "chain", "compress", "from_pretrained", "load", "lower", "only", "open",
    "per_site", "plain", "prepare", "run", "save", "save_pretrained",
]  # fmt: skip

_HOME = {
    "lower": "engines.lowering.lower", "open": "engines.onnxruntime", "run": "engines.onnxruntime", "Result": "flow",
    "compress": "flow", "Task": "job", "Where": "job", "chain": "methods.base.compose", "only": "methods.base.compose",
    "per_site": "methods.base.compose", "plain": "network.surgery", "from_pretrained": "storage.hub",
    "prepare": "calibration.prepare", "save_pretrained": "storage.hub", "load": "storage.load", "save": "storage.write",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kogata' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kogata.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

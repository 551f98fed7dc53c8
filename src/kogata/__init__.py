"""Kogata makes trained neural networks small and fast, and proves it.

Names are imported when first used, so that ``import kogata`` and ``kogata --help`` are quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kogata.artifact import load, save
    from kogata.compress import Result, compress
    from kogata.engines.onnxruntime import run
    from kogata.hub import from_pretrained, save_pretrained
    from kogata.job import Task, Where
    from kogata.method import chain, only, per_site
    from kogata.surgery import lower, plain

__all__ = [
    "Result", "Task", "Where", "chain", "compress", "from_pretrained", "load", "lower", "only", "per_site", "plain", "run",
    "save", "save_pretrained",
]  # fmt: skip

_HOME = {
    "load": "artifact", "save": "artifact", "compress": "compress", "Result": "compress", "run": "engines.onnxruntime",
    "Task": "job", "Where": "job", "chain": "method", "only": "method", "per_site": "method", "lower": "surgery",
    "plain": "surgery", "from_pretrained": "hub", "save_pretrained": "hub",
}  # fmt: skip


class _Package(ModuleType):
    """The function ``kogata.compress`` lives in the module ``kogata.compress``: importing the module must not hide it."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'kogata' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"kogata.{_HOME[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.compress if name == "compress" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package

"""Engines: where a compressed network really runs, and how long it takes there."""

from kogata.engines.base import Engine, Session
from kogata.engines.eager import Eager
from kogata.engines.onnxruntime import OnnxRuntime

ENGINES: tuple[type[Engine], ...] = (OnnxRuntime, Eager)
DEFAULT_ENGINE = OnnxRuntime()

__all__ = ["DEFAULT_ENGINE", "ENGINES", "Eager", "Engine", "OnnxRuntime", "Session"]

"""Engines: the runtimes in which compressed networks run and are measured."""

from kogata.engines.base import Engine, Session
from kogata.engines.eager import Eager
from kogata.engines.lowering.costs import EAGER, ONNXRUNTIME, Costs
from kogata.engines.lowering.rules import RULES
from kogata.engines.onnxruntime import OnnxRuntime

ENGINES: tuple[type[Engine], ...] = (OnnxRuntime, Eager)
DEFAULT_ENGINE = OnnxRuntime()

__all__ = [
    "DEFAULT_ENGINE", "EAGER", "ENGINES", "ONNXRUNTIME", "RULES", "Costs", "Eager", "Engine", "OnnxRuntime", "Session",
]  # fmt: skip

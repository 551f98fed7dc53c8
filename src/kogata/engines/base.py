"""The base class of engines. An engine turns a model into a session, which runs on the inputs of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from kogata.engines.lowering.costs import EAGER, Costs
from kogata.engines.lowering.rules import RULES, Rules
from kogata.storage.layout import Artifact, EngineGraph


class Session(nn.Module, ABC):
    """A model loaded in an engine, for a task to evaluate in the place of the original model.

    It is called like the original model and returns outputs of the same structure and classes.
    """


@dataclass(frozen=True, kw_only=True)
class Engine(ABC):
    """A runtime for inference on this machine.

    ``costs`` decide which forms are lowered to cheaper layers in this engine, and ``rules`` to which layers:
    ``rules={**RULES, MyForm: my_rule}`` adds a rule for a form of your own. The default costs are those of PyTorch.
    """

    name: ClassVar[str]
    costs: Costs = EAGER
    rules: Rules = field(default_factory=lambda: RULES, hash=False, repr=False)

    def graph(self, model: nn.Module, inputs: Any) -> EngineGraph | None:
        """The graph that a file must hold so that this engine can run it without the model's class; None if it needs none.

        Raises EngineError when the model cannot be exported.
        """
        return None

    @abstractmethod
    def export(self, artifact: Artifact, path: Path) -> None:
        """Write the contents of ``artifact`` as a file in the engine's own format, if it has one."""

    @abstractmethod
    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """Load a model into the engine; ``inputs`` are those of one batch. Raises EngineError when it cannot run."""

    @abstractmethod
    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """Load the contents of a file into the engine; ``model`` is the same file loaded into the user's class.

        Raises EngineError when it cannot run.
        """

"""What an engine is: it turns a model into something that runs, and runs it on the model's own inputs."""

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
    """A model loaded in an engine. Called like the model it came from, on tensors, so a task can evaluate it."""


@dataclass(frozen=True, kw_only=True)
class Engine(ABC):
    """A runtime for inference on this machine.

    ``costs`` decide which forms become cheaper layers here, and ``rules`` which layers these are:
    ``rules={**RULES, MyForm: my_rule}`` adds a rule for a form of your own. An engine without costs of its own has PyTorch's.
    """

    name: ClassVar[str]
    costs: Costs = EAGER
    rules: Rules = field(default_factory=lambda: RULES, hash=False, repr=False)

    def graph(self, model: nn.Module, inputs: Any) -> EngineGraph | None:
        """What a file must carry so that this engine runs it without the model's class; None when there is no such thing.

        Raises EngineError when the model cannot be exported.
        """
        return None

    @abstractmethod
    def export(self, artifact: Artifact, path: Path) -> None:
        """Write the engine's own file for what ``artifact`` holds, if the engine has one."""

    @abstractmethod
    def open_model(self, model: nn.Module, inputs: Any) -> Session:
        """A plain model in the engine; ``inputs`` are those of one batch. Raises EngineError when it cannot run it."""

    @abstractmethod
    def open_file(self, artifact: Artifact, model: nn.Module, inputs: Any) -> Session:
        """A file's contents in the engine; ``model`` is the same file loaded into the user's class.

        Raises EngineError when it cannot run it.
        """

"""Hints: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets", ICLR 2015 (1412.6550), equation 3:

    L = ½ ‖u − r(v)‖²,   u of a teacher's layer, v of a student's, r a regressor that is learnt with the student.
Here the mean over entries and not their sum, so that layers of all sizes weigh alike. The paper trains in two stages: a chain
of a Recover on hints and another on soft targets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.job import Task
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, LayerTerm, Loss
from kogata.training.terms.regressor import Regressor


@final
@dataclass(frozen=True, kw_only=True)
class Hints(LayerTerm):
    """Layers of the student learn those of the teacher, through a regressor where the shapes differ."""

    term: str = field(default="hints", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises UsageError where no regressor fits."""
        return _Hints(self.compared(student, teacher), student, teacher)


class _Hints(Loss):
    def __init__(self, compared: Compared, student: Seen, teacher: Seen) -> None:
        super().__init__()
        self._compared = compared
        self.regressors = nn.ModuleList([Regressor(*pair, "hints") for pair in compared(student, teacher)])

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = zip(self.regressors, self._compared(student, teacher), strict=True)
        return torch.stack([functional.mse_loss(regressor(v), u) / 2 for regressor, (v, u) in pairs]).sum()

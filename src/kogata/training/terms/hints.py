"""Hints: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets", ICLR 2015 (1412.6550), equation 3:

    L = ½ ‖u − r(v)‖²,   u the output of a teacher's layer, v of a student's, r a regressor learnt with the student.
Here the squares are averaged over the entries, not summed, so that layers of all sizes have the same weight. The paper trains
in two stages: write them as a chain of two Recover steps, the first on hints, the second on soft targets.
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
    """Layers of the student learn the outputs of layers of the teacher, through a regressor where the shapes differ.

    >>> Hints(student=("2",), teacher=("5",)).weight
    1.0
    """

    term: str = field(default="hints", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises UsageError when no regressor maps the student's shape to the teacher's."""
        return _Hints(self.compared(student, teacher), student, teacher)


class _Hints(Loss):
    def __init__(self, compared: Compared, student: Seen, teacher: Seen) -> None:
        super().__init__()
        self._compared = compared
        self.regressors = nn.ModuleList([Regressor(*pair, "hints") for pair in compared(student, teacher)])

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = zip(self.regressors, self._compared(student, teacher), strict=True)
        return torch.stack([functional.mse_loss(regressor(v), u) / 2 for regressor, (v, u) in pairs]).sum()

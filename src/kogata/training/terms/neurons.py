"""Selected neurons: Luo, Zhu, Liu, Wang, Tang, "Face Model Compression by Distilling Knowledge from Neurons", AAAI 2016.

A student learns those hidden units of its teacher that tell much and not the same as each other. The paper picks them by the
labels of attributes and by how units correlate; here without labels: greedily the unit with the most variance that the units
before it do not explain linearly, on the first batch (a Cholesky factorization with pivots, of their covariance). Then
    L = ½ ‖u − r(v)‖² / ‖u − ū‖²,   u the chosen units, r linear and learnt with the student.
A unit of images ``[N, C, H, W]`` or of sequences ``[N, T, C]`` is a channel, averaged over places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.job import Task
from kogata.settings import Range
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, LayerTerm, Loss


@final
@dataclass(frozen=True, kw_only=True)
class SelectedNeurons(LayerTerm):
    """``share`` of the units of each watched layer of the teacher, at least one."""

    term: str = field(default="selected-neurons", init=False)
    share: Annotated[float, Range(gt=0, le=1)] = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Choose the units. Raises UsageError for layers that have none."""
        return _Selected(self.compared(student, teacher), student, teacher, self.share)


class _Selected(Loss):
    def __init__(self, compared: Compared, student: Seen, teacher: Seen, share: float) -> None:
        super().__init__()
        self._compared, self.regressors = compared, nn.ModuleList()
        for number, (ours, theirs) in enumerate(compared(student, teacher)):
            v_ND, u_NK = units(ours), units(theirs)
            chosen = informative(u_NK, max(1, round(share * u_NK.shape[1])))
            self.register_buffer(f"chosen_{number}", chosen)
            self.regressors.append(nn.Linear(v_ND.shape[1], len(chosen), dtype=v_ND.dtype))

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        losses = list[Tensor]()
        for number, (ours, theirs) in enumerate(self._compared(student, teacher)):
            u_NK = units(theirs)[:, self.get_buffer(f"chosen_{number}")]
            error = (u_NK - self.regressors[number](units(ours))).square().sum()
            losses.append(error / (u_NK - u_NK.mean(0)).square().sum().clamp_min(1e-12) / 2)
        return torch.stack(losses).sum()


def units(tensor: Tensor) -> Tensor:
    """Activations as ``[N, units]``."""
    if tensor.ndim not in (2, 3, 4):
        raise UsageError(f"term selected-neurons: a layer of shape {tuple(tensor.shape)} has no units; expected 2 to 4 axes.")
    return tensor if tensor.ndim == 2 else tensor.mean(1) if tensor.ndim == 3 else tensor.mean((2, 3))


def informative(units_NK: Tensor, count: int) -> Tensor:
    """Places of ``count`` units, in ascending order, each with the most variance that those before do not explain."""
    left_NK = (units_NK - units_NK.mean(0)).double()
    chosen = list[int]()
    for _ in range(count):
        variance_K = left_NK.square().sum(0)
        variance_K[chosen] = -1.0
        chosen.append(int(variance_K.argmax()))
        pivot_N = left_NK[:, chosen[-1]]
        if (square := float(pivot_N @ pivot_N)) > 0:
            left_NK = left_NK - torch.outer(pivot_N, pivot_N @ left_NK) / square
    return torch.tensor(sorted(chosen), device=units_NK.device)

"""Selected neurons: Luo, Zhu, Liu, Wang, Tang, "Face Model Compression by Distilling Knowledge from Neurons", AAAI 2016.

A student learns those hidden units of its teacher that are informative and not redundant. The paper selects them by labels of
attributes and by the correlation of units. Here no labels are needed: greedily, the next unit is the one with the most variance
on the first batch that the units selected before do not explain linearly (a pivoted Cholesky factorization of the covariance):
    L = ½ ‖u − r(v)‖² / ‖u − ū‖²,   u the selected units, v the student's units, r a linear map learnt with the student.
A unit of feature maps ``[N, C, H, W]`` or sequences ``[N, T, C]`` is a channel, averaged over positions.
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
    """``share`` is the fraction of each teacher layer's units that the student learns; at least one unit is selected.

    >>> SelectedNeurons(student=("2",), teacher=("5",), share=0.5).share
    0.5
    """

    term: str = field(default="selected-neurons", init=False)
    share: Annotated[float, Range(gt=0, le=1)] = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Select the units. Raises UsageError for layers whose outputs have fewer than 2 or more than 4 axes."""
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
    """Indices of ``count`` units in ascending order, selected by the most variance that earlier ones do not explain."""
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

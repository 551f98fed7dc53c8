"""Review: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021 (2104.09044), section 3.

Each layer of the teacher teaches the corresponding layer of the student and all deeper ones. From the deepest layer to the
shallowest, the fused features of deeper layers (y) are merged with the layer's own (x) by learnt attention (the paper's ABF):
    z = σ(conv₁ₓ₁[x, y]),   f = z₁ x + z₂ y,   and conv₃ₓ₃ f is compared with the teacher's layer.
The comparison (the paper's HCL) sums mean squared errors at full size and after average pooling to 4×4, 2×2 and 1×1, with
weights 1, ½, ¼, ⅛ divided by their sum. Layers are named from shallow to deep; all give feature maps ``[N, C, H, W]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import UsageError
from kogata.job import Task
from kogata.settings import Range
from kogata.training.teachers.observe import Seen
from kogata.training.terms.base import Compared, LayerTerm, Loss

CELLS = (4, 2, 1)


@final
@dataclass(frozen=True, kw_only=True)
class Review(LayerTerm):
    """``width`` is the number of channels of the fused features; the paper uses 64 on CIFAR.

    >>> Review(student=("layer?",), teacher=("layer?",)).width
    64
    """

    term: str = field(default="review", init=False)
    width: Annotated[int, Range(ge=1)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_layers()

    def begin(self, student: Seen, teacher: Seen, task: Task) -> Loss:
        """Raises UsageError when a layer does not give feature maps ``[N, C, H, W]``."""
        compared = self.compared(student, teacher)
        for tensor in (tensor for pair in compared(student, teacher) for tensor in pair):
            if tensor.ndim != 4:
                raise UsageError(f"term review: a layer of shape {tuple(tensor.shape)}; expected feature maps [N, C, H, W].")
        return _Review(compared, student, teacher, self.width)


class _Review(Loss):
    def __init__(self, compared: Compared, student: Seen, teacher: Seen, width: int) -> None:
        super().__init__()
        self._compared = compared
        pairs = compared(student, teacher)
        self.own = nn.ModuleList([_convolution(ours.shape[1], width, 1) for ours, _ in pairs])
        self.out = nn.ModuleList([_convolution(width, theirs.shape[1], 3) for _, theirs in pairs])
        self.attention = nn.ModuleList([nn.Conv2d(2 * width, 2, 1) for _ in pairs[1:]])

    def forward(self, student: Seen, teacher: Seen, targets: Any) -> Tensor:
        pairs = self._compared(student, teacher)
        losses, fused_NCHW = list[Tensor](), None
        for place in reversed(range(len(pairs))):
            ours, theirs_NCHW = pairs[place]
            own_NCHW = self.own[place](ours)
            if fused_NCHW is not None:
                deeper_NCHW = functional.interpolate(fused_NCHW, size=own_NCHW.shape[2:], mode="nearest")
                z_N2HW = self.attention[place](torch.cat([own_NCHW, deeper_NCHW], 1)).sigmoid()
                own_NCHW = z_N2HW[:, :1] * own_NCHW + z_N2HW[:, 1:] * deeper_NCHW
            fused_NCHW = own_NCHW
            taught_NCHW = functional.interpolate(fused_NCHW, size=theirs_NCHW.shape[2:], mode="nearest")
            losses.append(pyramid(self.out[place](taught_NCHW), theirs_NCHW))
        return torch.stack(losses).sum()


def pyramid(ours_NCHW: Tensor, theirs_NCHW: Tensor) -> Tensor:
    """The hierarchical context loss (HCL) of two feature maps of equal shape."""
    scales = [(ours_NCHW, theirs_NCHW)]
    for cells in (cells for cells in CELLS if cells < ours_NCHW.shape[2]):
        scales.append(
            (functional.adaptive_avg_pool2d(ours_NCHW, cells), functional.adaptive_avg_pool2d(theirs_NCHW, cells))
        )  # fmt: skip
    weights = [0.5**power for power in range(len(scales))]
    errors = [weight * functional.mse_loss(*pair) for weight, pair in zip(weights, scales, strict=True)]
    return torch.stack(errors).sum() / sum(weights)


def _convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width))

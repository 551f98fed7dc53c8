"""Group lasso: train so that whole groups of weights become zero, and prune those.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016 (1608.03665), equation 1;
Lebedev and Lempitsky, "Fast ConvNets Using Group-wise Brain Damage", CVPR 2016 (1506.02515), section 4:
    L = error + λ Σ_g √|g| ‖W_g‖₂   over filters, channels, positions of a filter ("shapes"), or whole layers ("depth").
A gradient never makes a group exactly zero. So after each step of the optimizer comes the proximal step of the penalty:
    W_g ← W_g max(0, 1 − η λ √|g| / ‖W_g‖₂).
The step size η is the share of the training that the step is, so that over all of it a group that the error does not hold
loses λ of its root mean square, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor, nn

from kogata.forms import Role
from kogata.methods.base.method import About
from kogata.methods.base.trained import TrainedLeaf, TrainingMethod
from kogata.methods.pruning.masks import kept
from kogata.methods.recover import Recover
from kogata.network import surgery
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper

Groups = Literal["filters", "channels", "shapes", "depth"]

_WITHIN: Mapping[Groups, tuple[int, ...]] = {  # the axes of [output, input, position] that lie within a group
    "filters": (1, 2), "channels": (0, 2), "shapes": (0,), "depth": (0, 1, 2),
}  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True)
class GroupLasso(TrainingMethod):
    """Train groups to zero. ``strength`` is λ, in units of weights: what the root mean square of a group loses unresisted.

    Of a linear layer the filters are the rows and the channels the columns. A layer keeps at least its largest group,
    unless ``groups`` is "depth": then a layer may die, which only a layer with a connection around it can afford.

    >>> import torch
    >>> from kogata.methods import GroupLasso, Recover
    >>> net = GroupLasso(strength=10.0, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.step(1.0)  # a strength this large removes every row but the largest
    >>> net.finish().weight.any(1).sum()
    tensor(1)
    """

    strength: Annotated[float, Range(gt=0, example=0.1)]
    recover: Recover
    groups: Groups = "filters"

    ABOUT = About(
        name="group-lasso",
        family="pruning",
        summary="train whole filters, channels, positions or layers to zero, and drop them",
        paper="Wen et al. 2016, arXiv 1608.03665; Lebedev and Lempitsky 2016, arXiv 1506.02515",
        training=True,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX, Role.VALUES}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model itself, with the proximal step on its targets."""
        return _Shrinking(model, targets, self)


class _Shrinking(TrainingWrapper):
    progress: Tensor

    def __init__(self, model: nn.Module, targets: Sequence[TrainedLeaf], method: GroupLasso) -> None:
        super().__init__(model)
        self._targets, self._method = list(targets), method
        self.register_buffer("progress", torch.zeros(()))

    def step(self, progress: float) -> None:
        """Shrink every group by what this step is of the training."""
        amount = self._method.strength * (progress - float(self.progress))
        self.progress.fill_(progress)
        with torch.no_grad():
            for target in self._targets:
                target.leaf.values.copy_(shrunk(target.leaf.values, self._method.groups, amount))

    def finish(self) -> nn.Module:
        """The model without the groups that are zero."""
        for target in self._targets:
            weight = target.leaf.values.detach()
            alive = (_norms(weight, self._method.groups) > 0).expand(_grouped(weight).shape).reshape(weight.shape)
            surgery.replace(self.model, target.site, target.path, kept(target.leaf, alive))
        return self.model


def shrunk(weight: Tensor, groups: Groups, amount: float) -> Tensor:
    """The proximal point of ``amount · Σ √|g| ‖W_g‖₂``; if every group would die, the largest stays as it is."""
    norms = _norms(weight, groups)
    size = weight.numel() / norms.numel()
    factor = (1 - amount * math.sqrt(size) / norms).clamp_min(0)  # of a group that is zero: 1 − ∞
    if groups != "depth" and not factor.any():
        factor = (torch.arange(norms.numel(), device=norms.device) == norms.argmax()).to(norms).reshape(norms.shape)
    return (_grouped(weight) * factor.nan_to_num(0)).reshape(weight.shape)


def _grouped(weight: Tensor) -> Tensor:
    """``[output, input, position]``."""
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _norms(weight: Tensor, groups: Groups) -> Tensor:
    return torch.linalg.vector_norm(_grouped(weight), dim=_WITHIN[groups], keepdim=True)

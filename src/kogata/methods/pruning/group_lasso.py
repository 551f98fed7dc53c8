"""Group lasso: train with a penalty that makes whole groups of weights zero, and prune these groups.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016 (1608.03665), equation 1;
Lebedev and Lempitsky, "Fast ConvNets Using Group-wise Brain Damage", CVPR 2016 (1506.02515), section 4:
    L = error + λ Σ_g √|g| ‖W_g‖₂   over filters, channels, positions of a filter ("shapes"), or whole layers ("depth").
A gradient step never makes a group exactly zero. Therefore each step of the optimizer is followed by a proximal step:
    W_g ← W_g max(0, 1 − η λ √|g| / ‖W_g‖₂).
The step size η is one over the number of steps of the training. In total, a group without influence on the error therefore
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
    """Train groups of weights to zero and prune them.

    ``strength`` is λ, above 0, in units of weights: the root mean square that a group without influence on the error loses. In
    a linear layer the filters are the rows and the channels the columns. A layer keeps at least its largest group, unless
    ``groups`` is "depth": then a whole layer may become zero, which makes sense only with a skip connection around it. The
    masks stay as wide as the layers were: ``chain(GroupLasso(...), ChannelPruning(sparsity=0))`` removes the filters and
    channels that are zero. Raises DataError without training data.

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
        summary="train whole filters, channels, kernel positions or layers to zero, and prune them",
        paper="Wen et al. 2016, arXiv 1608.03665; Lebedev and Lempitsky 2016, arXiv 1506.02515",
        training=True,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX, Role.VALUES}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with the proximal step on its targets."""
        return _Shrinking(model, targets, self)


class _Shrinking(TrainingWrapper):
    progress: Tensor

    def __init__(self, model: nn.Module, targets: Sequence[TrainedLeaf], method: GroupLasso) -> None:
        super().__init__(model)
        self._targets, self._method = list(targets), method
        self.register_buffer("progress", torch.zeros((), dtype=torch.float32))

    def step(self, progress: float) -> None:
        """Apply the proximal step for the part of the training since the last call."""
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
    """The proximal point of ``amount · Σ √|g| ‖W_g‖₂``. If every group would become zero, the largest stays as it is."""
    norms = _norms(weight, groups)
    size = weight.numel() / norms.numel()
    factor = (1 - amount * math.sqrt(size) / norms).clamp_min(0)  # 1 − ∞ for a group that is already zero
    if groups != "depth" and not factor.any():
        factor = (torch.arange(norms.numel(), device=norms.device) == norms.argmax()).to(norms).reshape(norms.shape)
    return (_grouped(weight) * factor.nan_to_num(0)).reshape(weight.shape)


def _grouped(weight: Tensor) -> Tensor:
    """``[output, input, position]``."""
    return weight.reshape(weight.shape[0], weight.shape[1], -1)


def _norms(weight: Tensor, groups: Groups) -> Tensor:
    return torch.linalg.vector_norm(_grouped(weight), dim=_WITHIN[groups], keepdim=True)

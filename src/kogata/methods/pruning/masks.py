"""Functions that pruning methods share: how many entries to keep, which ones, and the form that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from kogata.errors import NotApplicable
from kogata.forms import Dense, Form, Masked
from kogata.methods.base.planned import PlannedLeaf
from kogata.methods.base.trained import TrainedLeaf
from kogata.methods.kernels.obs import largest


def counts(targets: Sequence[TrainedLeaf], sparsity: float) -> list[int]:
    """The number of entries to keep of each target, at least one. Earlier pruning counts towards ``sparsity``.

    Raises NotApplicable when no target would lose an entry.
    """
    keep = [max(1, round((1 - sparsity) * torch.Size(target.site.shape).numel())) for target in targets]
    if all(count >= target.leaf.shape.numel() for count, target in zip(keep, targets, strict=True)):
        raise NotApplicable(f"a sparsity of {sparsity} is already reached by all of {', '.join(t.site.name for t in targets)}")
    return keep


def highest(weight: Tensor, score: Tensor, keep: int) -> Masked:
    """Keep the ``keep`` entries of ``weight`` with the highest scores. Raises NotApplicable if that is all or none of them."""
    if not 0 < keep < weight.numel():
        raise NotApplicable(f"keeping {keep} of {weight.numel()} weights changes nothing or leaves nothing")
    return Masked.of(weight, largest(score, keep))


def common_threshold(
    name: str, leaves: Iterable[PlannedLeaf], score: Callable[[PlannedLeaf], Tensor], sparsity: float
) -> float:
    """The lowest score to keep so that all leaves together have this ``sparsity``; earlier pruning counts towards it.

    Raises NotApplicable, with the ``name`` of the method, when all entries or none of them would be kept.
    """
    scores, total = list[Tensor](), 0
    for leaf in leaves:
        scores.append(score(leaf).flatten())
        total += torch.Size(leaf.part.shape).numel()
    ranked = torch.cat(scores).sort(descending=True).values if scores else torch.empty(0)
    keep = round((1 - sparsity) * total)
    if not 0 < keep < len(ranked):
        raise NotApplicable(f"{name}: keeping {keep} of {len(ranked)} weights changes nothing or leaves nothing.")
    return float(ranked[keep - 1])


def above(weight: Tensor, score: Tensor, threshold: float) -> Masked:
    """Keep the entries of ``weight`` whose score reaches the threshold, at least the best. Raises NotApplicable if all do."""
    mask = score >= min(threshold, float(score.max()))
    if mask.all():
        raise NotApplicable("all its weights are above the common threshold")
    return Masked.of(weight, mask)


def kept(leaf: Dense, mask: Tensor) -> Form:
    """The entries of ``leaf`` where ``mask`` (bool, the same shape) is true.

    If the mask is false everywhere, the largest entry is kept; if it is true everywhere, the result is a dense leaf.
    """
    weight = leaf.values.detach()
    if mask.all():
        return Dense(weight, leaf.role)
    return Masked.of(weight, mask if mask.any() else largest(weight.abs(), 1))

"""A few rows of a batch, where the batch has rows: not every first axis counts samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kogata.network.batch import call, evaluating, take
from kogata.network.nesting import leaves

TOLERANCE = 1e-2  # relative: larger than the rounding of half precision, smaller than what another sample changes


def first_rows(model: nn.Module, inputs: Any, rows: int = 1) -> Any:
    """The first ``rows`` samples of a batch, or ``inputs`` itself where the first axis does not count samples.

    It does where all tensors have the same length along it (or 1, to be broadcast), the model runs on the first rows alone,
    and returns for them a part of what it returns for the whole batch. Graphs, sequences before samples, single signals and
    lists of images do not pass.

    >>> first_rows(nn.Linear(4, 2), torch.ones(8, 4)).shape
    torch.Size([1, 4])
    >>> first_rows(nn.Conv1d(4, 2, 3), torch.ones(4, 100)).shape  # one signal of four channels
    torch.Size([4, 100])
    """
    lengths = {len(part) for part in leaves(inputs) if isinstance(part, Tensor) and part.ndim} - {1}
    if len(lengths) != 1 or (count := lengths.pop()) <= rows:
        return inputs
    few = take(inputs, rows)
    with evaluating(model):
        whole = call(model, inputs)
        try:
            part = call(model, few)
        except Exception:  # whatever the user's forward raises on what are no samples
            return inputs
    wholes, parts = ([leaf for leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.ndim] for output in (whole, part))
    if not wholes or len(wholes) != len(parts):
        return inputs
    return few if all(_is_part(a, b, count, rows) for a, b in zip(parts, wholes, strict=True)) else inputs


def _is_part(part: Tensor, whole: Tensor, count: int, rows: int) -> bool:
    """Whether a tensor is the beginning of ``whole`` along one axis: ``rows`` of its ``count`` equal pieces."""
    if part.ndim != whole.ndim:
        return False
    axes = [axis for axis in range(whole.ndim) if part.shape[axis] != whole.shape[axis]]
    if len(axes) != 1 or part.shape[axes[0]] * count != whole.shape[axes[0]] * rows:
        return False
    if not whole.is_floating_point():  # a near tie may be decided otherwise
        return True
    wanted = whole.narrow(axes[0], 0, part.shape[axes[0]]).double()
    return float(torch.linalg.vector_norm(part.double() - wanted)) <= TOLERANCE * float(torch.linalg.vector_norm(wanted))

"""Pruning under a quadratic loss: choose the weights to keep, and adjust them to compensate for the pruned ones.

For a given set of kept weights, the error (w − v) H (w − v)ᵀ of a row is least at the least-squares solution v on that set. The
compensating updates of Optimal Brain Surgeon, one removal after another, lead to the same v (Hassibi and Stork, 1992). The set
is chosen by the alternating direction method of multipliers (Boža, "Fast and Effective Weight Update for Pruned Large Language
Models", 2401.02938). With columns scaled so that diag H⁻¹ = 1, the square of a weight is the cost of removing it, and
    z = (v + u) where it is among the largest, else 0;   u += v − z;   v = (w H + ρ (z − u)) (H + ρ)⁻¹,
while the fraction of kept weights falls to the requested one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kogata.methods.kernels import conjugate_gradients
from kogata.system import memory

ROUNDS = 16  # iterations of the alternating direction method
RAMP = 12  # iterations in which the sparsity rises
PENALTY = 0.5  # ρ, relative to the mean of the diagonal of H

Choose = Callable[[Tensor, float], Tensor]
"""A function of scores ``[G, O, I]`` and the fraction of the sparsity to reach, in (0, 1], that returns the entries to keep."""


def select(weight_GOI: Tensor, gram_GII: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
    """The weights to keep (bool, ``[G, O, I]``) and their approximate new values. ``gram_GII`` must be positive definite."""
    scale_GI = _inverted(gram_GII.clone()).diagonal(dim1=1, dim2=2).rsqrt()
    inverse_GII = (gram_GII / scale_GI[:, :, None]).div_(scale_GI[:, None])
    diagonal_GI = inverse_GII.diagonal(dim1=1, dim2=2)
    penalty = PENALTY * float(diagonal_GI.mean())
    diagonal_GI.add_(penalty)
    _inverted(inverse_GII)
    scale_G1I = scale_GI[:, None]
    found = weight_GOI * scale_G1I
    found.baddbmm_(weight_GOI * scale_G1I, inverse_GII, alpha=-penalty)  # H (H + ρ)⁻¹ = 1 − ρ (H + ρ)⁻¹
    dual = torch.zeros_like(found)
    for k in range(1, ROUNDS):
        dual += found
        del found
        sparse = dual * choose(dual.abs(), min(1.0, k / RAMP) ** (1 / 3))
        dual -= sparse
        sparse.sub_(dual).addcmul_(weight_GOI, scale_G1I, value=-1)
        found = (weight_GOI * scale_G1I).baddbmm_(sparse, inverse_GII, alpha=penalty)
        del sparse
    del inverse_GII
    memory.release()
    return choose(dual.add_(found).abs_(), 1.0), found.div_(scale_GI[:, None])


def _inverted(matrices_GII: Tensor) -> Tensor:
    """Invert each matrix in place."""
    for matrix_II in matrices_GII.mT:  # column-major, as LAPACK expects, to avoid a copy
        torch.linalg.cholesky(matrix_II, out=matrix_II)
        torch.cholesky_inverse(matrix_II, out=matrix_II)
    return matrices_GII


def refit(
    weight_GOI: Tensor, gram_GII: Tensor, kept_GOI: Tensor, start_GOI: Tensor, steps: int, outer_OO: Tensor | None = None
) -> Tensor:
    """Fit the kept weights by least squares, in ``steps`` conjugate gradient steps from ``start_GOI``; zero elsewhere.

    With E the error of the weight, the loss is tr(E H Eᵀ), a separate system for each row. If ``outer_OO``, the curvature G of
    the loss with respect to the outputs, is given, the loss is tr(G E H Eᵀ), one system for the whole layer.
    """
    shape = (-1, weight_GOI.shape[2]) if outer_OO is None else (1, -1)

    def curved(matrix_GOI: Tensor) -> Tensor:
        image = matrix_GOI @ gram_GII
        return image if outer_OO is None else outer_OO @ image

    def normal(rows: Tensor) -> Tensor:
        return curved(rows.reshape(weight_GOI.shape)).mul_(kept_GOI).reshape(shape)

    diagonal_GOI = gram_GII.diagonal(dim1=1, dim2=2)[:, None]
    if outer_OO is not None:
        diagonal_GOI = diagonal_GOI * outer_OO.diagonal()[:, None]
    found = conjugate_gradients.solve(
        normal, normal(weight_GOI), (diagonal_GOI * kept_GOI).reshape(shape), (start_GOI * kept_GOI).reshape(shape), steps
    )
    return found.reshape(weight_GOI.shape)


def largest(score: Tensor, keep: int) -> Tensor:
    """A mask (bool, the shape of ``score``) of the ``keep`` highest scores. Of equal scores the first in memory is kept."""
    flat = score.flatten()
    if keep >= len(flat):
        return torch.ones_like(score, dtype=torch.bool)
    last = len(flat) - keep
    if flat.is_cpu:  # takes half the time of kthvalue, and no memory for indices
        numbers = flat.detach() if flat.dtype == torch.float32 else flat.detach().double()  # NumPy has no bfloat16
        threshold = torch.from_numpy(np.partition(numbers.numpy(), last)[last : last + 1]).to(flat.dtype)
    else:
        threshold = flat.kthvalue(last + 1).values
    kept = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    return kept.index_fill(0, ties[: keep - int(kept.sum())], True).reshape(score.shape)

"""Rounding under a quadratic loss: Optimal Brain Quantization in one pass, and what improves on it afterwards.

A row w of a layer has the output error (w − q) H (w − q)ᵀ, H = XᵀX / rows. Frantar and Alistarh (2208.11580) round one weight
at a time and let the others make up for it; in a fixed order of the columns (Frantar et al., 2210.17323) this is successive
rounding under a Cholesky factor H = R Rᵀ, R upper triangular, which needs no inverse:
    ‖e R‖² = Σ_j R_jj² (w_j + Σ_{i<j} e_i R_ij / R_jj − q_j)²,  e = w − q,
each term of which is made smallest in turn. Coordinate descent (Behdin et al., 2309.01885) then changes single codes while
that lowers the error, and the scales have a least-squares fit under fixed codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kogata.system import memory

BLOCK = 128  # columns rounded one by one before a matrix product carries their errors to all later ones
STEPS = 24  # scales tried for each group
NARROWEST = 0.4  # of the range of the weights: the smallest of them


def damped(gram: Tensor, damping: float) -> Tensor:
    """Each gram ``[..., I, I]`` plus ``damping`` times its mean diagonal, so that it has an inverse.

    It is the identity where no input is ever seen.
    """
    sums = gram.clone()
    diagonal = sums.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    diagonal.add_(damping * mean + (mean == 0))
    return sums


def pivots(gram_II: Tensor, order_I: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``gram_II`` in an order, R Rᵀ: ``T[j, i]`` = R_ij / R_jj ``[I, I]`` and ``R_jj²`` ``[I]``, both float32.

    R_jj² = 1 / [H⁻¹]_jj of the columns from j on: what an error at j costs when all later columns make up for it. There is one
    copy in float64, factored in its own place, for this can be the largest matrix there is.
    """
    last_first_I = order_I.flip(0)
    root_II = torch.empty_like(gram_II, dtype=torch.float64).copy_(gram_II[last_first_I[:, None], last_first_I])
    torch.linalg.cholesky(root_II.mT, out=root_II.mT)  # in LAPACK's order of memory, so that nothing is copied
    diagonal_I = root_II.diagonal().flip(0).float()
    root_II = root_II.float()
    transfer_II = root_II.flip(0, 1).div_(diagonal_I[:, None])
    del root_II
    memory.release()
    return transfer_II, diagonal_I.square()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What each weight may become: ``scale · (code − zero)``, code in ``[0, top]``; where not ``kept``, zero.

    Float32 and bool, all ``[O, I]``.
    """

    scale: Tensor
    zero: Tensor
    kept: Tensor
    top: int

    def columns(self, order_I: Tensor) -> Grid:
        """The grid of the columns in another order."""
        scale, zero, kept = (part[:, order_I].contiguous() for part in (self.scale, self.zero, self.kept))
        return Grid(scale=scale, zero=zero, kept=kept, top=self.top)


def successive(weight_OI: Tensor, transfer_II: Tensor, grid: Grid) -> Tensor:
    """Codes ``[O, I]`` (float32), column after column, each making up for the errors before it.

    ``transfer_II`` is the first of :func:`pivots`.
    """
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    error_OI, code_OI = torch.zeros_like(weight_OI), torch.empty_like(weight_OI)
    for start in range(0, weight_OI.shape[1], BLOCK):
        stop = min(start + BLOCK, weight_OI.shape[1])
        carried_OB = error_OI[:, :start] @ transfer_II[start:stop, :start].T
        obq_loops.successive(
            weight_OI.numpy(), carried_OB.numpy(), transfer_II.numpy(), grid.scale.numpy(), grid.zero.numpy(),
            grid.kept.numpy(), grid.top, error_OI.numpy(), code_OI.numpy(), start,
        )  # fmt: skip
    return code_OI


def descend(weight_OI: Tensor, gram_II: Tensor, grid: Grid, code_OI: Tensor, sweeps: int) -> Tensor:
    """Better codes ``[O, I]``: each in turn becomes the best given all others, in so many sweeps or until none changes."""
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    code_OI = code_OI.clone()
    gradient_OI = (weight_OI - grid.scale * (code_OI - grid.zero)) @ gram_II
    obq_loops.descend(
        gradient_OI.numpy(), gram_II.numpy(), grid.scale.numpy(), grid.zero.numpy(), grid.kept.numpy(), grid.top,
        code_OI.numpy(), sweeps,
    )  # fmt: skip
    return code_OI


def search(rows_RC: Tensor, importance_RC: Tensor, *, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[R, groups]`` of each group that round it to nearest with the least error, by importance.

    Scales are tried from ``NARROWEST`` to all of the range of the weights, each with the zero points around the range's own;
    a symmetric grid has its zero point in the middle.
    """
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    rows, columns = rows_RC.shape
    scale_RG = torch.empty(rows, -(-columns // group))
    zero_RG = torch.empty_like(scale_RG)
    centre = 2 ** (bits - 1) if symmetric and bits > 1 else -1
    obq_loops.search(
        rows_RC.numpy(), importance_RC.numpy(), 2**bits - 1, group, centre, STEPS, NARROWEST, scale_RG.numpy(), zero_RG.numpy()
    )
    return scale_RG, zero_RG

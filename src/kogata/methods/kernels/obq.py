"""Rounding under a quadratic loss: Optimal Brain Quantization in one pass, then refinement of codes and scales.

A row w of a layer has the output error (w − q) H (w − q)ᵀ with H = XᵀX / rows. Frantar and Alistarh (2208.11580) round one
weight at a time and adjust the others to compensate. With a fixed order of the columns (Frantar et al., 2210.17323) this is
successive rounding with the Cholesky factor H = R Rᵀ, R upper triangular, which needs no inverse:
    ‖e R‖² = Σ_j R_jj² (w_j + Σ_{i<j} e_i R_ij / R_jj − q_j)²,  e = w − q,
where each term is minimized in turn. Coordinate descent (Behdin et al., 2309.01885) then changes single codes as long as this
lowers the error, and the scales are fitted by least squares for fixed codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kogata.system import memory

BLOCK = 128  # columns rounded one by one before a matrix product propagates their errors to all later columns
STEPS = 24  # number of scales tried for each group
NARROWEST = 0.4  # the smallest scale tried, relative to the scale that covers the whole range of the weights


def damped(gram: Tensor, damping: float) -> Tensor:
    """Gram matrices ``[..., I, I]`` with ``damping`` times the mean of their diagonal added to it, so that they are invertible.

    A Gram matrix of zeros becomes the identity.
    """
    sums = gram.clone()
    diagonal = sums.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    diagonal.add_(damping * mean + (mean == 0))
    return sums


def pivots(gram_II: Tensor, order_I: Tensor) -> tuple[Tensor, Tensor]:
    """Factor ``gram_II``, with its columns in ``order_I``, as R Rᵀ; return T ``[I, I]``, T_ji = R_ij / R_jj, and R_jj² ``[I]``.

    Both are float32. R_jj² = 1 / [H⁻¹]_jj for the columns from j on is the cost of an error in column j after all later columns
    have compensated for it. The only float64 copy is factored in place, because this can be the largest matrix of the model.
    """
    last_first_I = order_I.flip(0)
    root_II = torch.empty_like(gram_II, dtype=torch.float64).copy_(gram_II[last_first_I[:, None], last_first_I])
    torch.linalg.cholesky(root_II.mT, out=root_II.mT)  # column-major, as LAPACK expects, to avoid a copy
    diagonal_I = root_II.diagonal().flip(0).float()
    root_II = root_II.float()
    transfer_II = root_II.flip(0, 1).div_(diagonal_I[:, None])
    del root_II
    memory.release()
    return transfer_II, diagonal_I.square()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that each weight may take: ``scale · (code − zero)`` with code in ``[0, top]``, or 0 where ``kept`` is false.

    ``scale`` and ``zero`` are float32 and ``kept`` is bool, all ``[O, I]``.
    """

    scale: Tensor
    zero: Tensor
    kept: Tensor
    top: int

    def columns(self, order_I: Tensor) -> Grid:
        """The grid with its columns in another order."""
        scale, zero, kept = (part[:, order_I].contiguous() for part in (self.scale, self.zero, self.kept))
        return Grid(scale=scale, zero=zero, kept=kept, top=self.top)


def successive(weight_OI: Tensor, transfer_II: Tensor, grid: Grid) -> Tensor:
    """Codes ``[O, I]`` (float32), rounded column by column; each column compensates for the errors of those before it.

    ``transfer_II`` is the matrix T of :func:`pivots`.
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


def priced(weight_OI: Tensor, transfer_II: Tensor, cost_I: Tensor, kept_OI: Tensor, step: float, price: Tensor) -> Tensor:
    """Codes ``[O, I]`` (float32) of multiples of ``step``, rounded as in ``successive``, but each with its price.

    The cost of a code c in column j is cost_j · (target / step − c)² + price[c + most], in float32; ``price`` has
    2 · most + 1 entries. Entries that are not ``kept`` get the code 0.
    """
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    error_OI, code_OI = torch.zeros_like(weight_OI), torch.empty_like(weight_OI)
    for start in range(0, weight_OI.shape[1], BLOCK):
        stop = min(start + BLOCK, weight_OI.shape[1])
        carried_OB = error_OI[:, :start] @ transfer_II[start:stop, :start].T
        obq_loops.priced(
            weight_OI.numpy(), carried_OB.numpy(), transfer_II.numpy(), cost_I.numpy(), step, kept_OI.numpy(), price.numpy(),
            error_OI.numpy(), code_OI.numpy(), start,
        )  # fmt: skip
    return code_OI


def descend(weight_OI: Tensor, gram_II: Tensor, grid: Grid, code_OI: Tensor, sweeps: int) -> Tensor:
    """Improve codes ``[O, I]`` by coordinate descent: each in turn becomes the best one given all others.

    It stops after ``sweeps`` passes over the columns, or when no code changes.
    """
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    code_OI = code_OI.clone()
    gradient_OI = (weight_OI - grid.scale * (code_OI - grid.zero)) @ gram_II
    obq_loops.descend(
        gradient_OI.numpy(), gram_II.numpy(), grid.scale.numpy(), grid.zero.numpy(), grid.kept.numpy(), grid.top,
        code_OI.numpy(), sweeps,
    )  # fmt: skip
    return code_OI


def search(rows_RC: Tensor, importance_RC: Tensor, *, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales and zero points ``[R, groups]`` with the least importance-weighted squared error of rounding to nearest.

    Scales are tried from ``NARROWEST`` up to the one that covers the whole range of the weights. Each is tried with the zero
    points next to that of the range; a symmetric grid has its zero point in the middle.
    """
    from kogata.methods.kernels import obq_loops  # numba takes long to import

    rows, columns = rows_RC.shape
    scale_RG = torch.empty(rows, -(-columns // group), dtype=torch.float32)
    zero_RG = torch.empty_like(scale_RG)
    centre = 2 ** (bits - 1) if symmetric and bits > 1 else -1
    obq_loops.search(
        rows_RC.numpy(), importance_RC.numpy(), 2**bits - 1, group, centre, STEPS, NARROWEST, scale_RG.numpy(), zero_RG.numpy()
    )
    return scale_RG, zero_RG

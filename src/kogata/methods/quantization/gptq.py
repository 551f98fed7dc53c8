"""GPTQ: rounding that makes up for its own errors.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (2210.17323), equation 2; Frantar and Alistarh, "Optimal Brain
Compression" (2208.11580):
    argmin_q (w − q) H (w − q)ᵀ,  H = XᵀX / rows + λ mean(diag XᵀX / rows),
greedily, one column after another, the one with the largest H_jj first (``kernels/obq.py``). The scale of each group is the
best of several under the errors that the columns will cost. Then, in turn, the scales are fitted by least squares under the
codes, and each code is chosen anew given all others: the error only falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Affine, Dense, Form, Role
from kogata.job import Kind, Site
from kogata.kernels import conjugate_gradients, obq
from kogata.method import About, WeightMethod
from kogata.methods.quantization.rounding import half
from kogata.stats import Stat, Stats

SWEEPS = 8  # over the codes in each round; most rows come to rest sooner
STEPS = 4  # of conjugate gradients towards the best scales


@final
@dataclass(frozen=True, kw_only=True)
class GPTQ(WeightMethod):
    """Round to 2**bits levels with the least error of the layer's output on the calibration data.

    ``bits``, ``group`` and ``symmetric`` are those of RoundToNearest; the groups of the kept values of a mask are consecutive
    kept values, and what was pruned stays zero. ``damping`` times its mean diagonal is added to the gram of the inputs.
    ``rounds`` of scales and codes in turn follow; with 0 it is plain GPTQ.
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    damping: float = 0.01
    rounds: int = 1

    ABOUT = About(
        name="gptq",
        family="quantization",
        summary="one-shot rounding that makes up for its errors through the inverse Hessian",
        paper="Frantar et al. 2022, arXiv 2210.17323 and 2208.11580",
    )
    NEEDS = frozenset({Stat.GRAM})
    ACCEPTS = frozenset({Role.MATRIX, Role.VALUES})
    LEAVES = frozenset({Role.SCALE})
    GRID: ClassVar[Mapping[str, tuple[Any, ...]]] = {"bits": (2, 3, 4), "group": (32, 64, 128, None)}

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise UsageError(f"gptq: bits is {self.bits}; expected 1 to 8.")
        if self.group is not None and self.group < 1:
            raise UsageError(f"gptq: group is {self.group}; expected 1 or more, or null for whole rows.")
        if not self.damping > 0:
            raise UsageError(f"gptq: damping is {self.damping}; expected a small positive fraction, such as 0.01.")
        if self.rounds < 0:
            raise UsageError(f"gptq: rounds is {self.rounds}; expected 0 or more.")

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Codes under the scale of each group."""
        layer = layer_of(weight, site, stats, self.damping)
        return rounded(layer, weight.shape, bits=self.bits, group=self.group, symmetric=self.symmetric, rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A weight as its layer uses it, ``[groups, outputs, columns]``, and as its leaf stores it: as rows ``[R, C]``.

    The leaf holds all of the weight, or at ``position`` in it the values that a mask kept, as one row. Where not
    ``kept_GOI`` the weight is zero and stays so. ``gram_GII`` is damped.
    """

    weight_GOI: Tensor
    gram_GII: Tensor
    kept_GOI: Tensor
    position: Tensor | None

    def rows(self, matrix_GOI: Tensor) -> Tensor:
        """The entries that the leaf holds."""
        return matrix_GOI.flatten(0, 1) if self.position is None else matrix_GOI.flatten()[None, self.position]

    def matrix(self, rows_RC: Tensor) -> Tensor:
        """The entries in their places, ones elsewhere."""
        if self.position is None:
            return rows_RC.reshape(self.weight_GOI.shape)
        return rows_RC.new_ones(self.weight_GOI.numel()).scatter(0, self.position, rows_RC[0]).reshape(self.weight_GOI.shape)


def layer_of(weight: Tensor, site: Site, stats: Stats, damping: float) -> Layer:
    """The layer of a leaf. The output of an embedding is a row of it as it is, so its gram is the identity.

    Raises NotApplicable where the inputs could not be seen, DataError where a weight is not finite.
    """
    seen_GII = torch.eye(site.shape[-1])[None] if site.kind is Kind.EMBEDDING else stats.gram_GII
    if seen_GII is None:
        raise NotApplicable("its inputs could not be seen")
    if not torch.isfinite(weight).all():
        raise DataError(f"{site.name} of shape {site.shape} holds NaN or infinite weights; mend the model first.")
    groups, columns, _ = seen_GII.shape
    flat, kept = weight.flatten(), torch.ones(weight.numel(), dtype=torch.bool)
    if stats.position is not None:
        size = torch.Size(site.shape).numel()
        flat, kept = (x.new_zeros(size).scatter(0, stats.position, x) for x in (flat, kept))
    return Layer(
        weight_GOI=flat.reshape(groups, -1, columns), gram_GII=obq.damped(seen_GII, damping),
        kept_GOI=kept.reshape(groups, -1, columns), position=stats.position,
    )  # fmt: skip


def rounded(layer: Layer, shape: torch.Size, *, bits: int, group: int | None, symmetric: bool, rounds: int) -> Affine:
    """Codes of ``shape`` for what the leaf of ``layer`` holds; entries that are not kept get the code of zero."""
    rows_RC = layer.rows(layer.weight_GOI)
    group = min(group or rows_RC.shape[1], rows_RC.shape[1])
    orders = [gram_II.diagonal().argsort(descending=True, stable=True) for gram_II in layer.gram_GII]
    factors = [obq.pivots(gram_II, order) for gram_II, order in zip(layer.gram_GII, orders, strict=True)]
    cost_GI = torch.stack([pivot[order.argsort()] for (_, pivot), order in zip(factors, orders, strict=True)])
    importance_RC = layer.rows(cost_GI[:, None] * layer.kept_GOI)
    scale, zero = obq.search(rows_RC, importance_RC, bits=bits, group=group, symmetric=symmetric)
    scale = half(scale)
    problem = _Problem(layer=layer, scale_RG=scale, zero_RG=zero, group=group, top=2**bits - 1)
    code = torch.empty_like(layer.weight_GOI)
    for g, grid in enumerate(problem.grids()):
        order, transfer = orders[g], factors[g][0]
        found = obq.successive(layer.weight_GOI[g][:, order].contiguous(), transfer, grid.columns(order))
        code[g] = found[:, order.argsort()]
    for _ in range(rounds):
        problem = replace(problem, scale_RG=problem.fitted(code))
        for g, grid in enumerate(problem.grids()):
            code[g] = obq.descend(layer.weight_GOI[g], layer.gram_GII[g], grid, code[g], SWEEPS)
    codes = layer.rows(code).to(torch.uint8).reshape(shape)
    return Affine(codes, Dense(problem.scale_RG, Role.SCALE), zero.to(torch.uint8), bits=bits, group=group)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """A layer and the scales of the groups of its leaf."""

    layer: Layer
    scale_RG: Tensor
    zero_RG: Tensor
    group: int
    top: int

    def grids(self) -> list[obq.Grid]:
        """The grid of each group of the layer's outputs."""
        scale, zero = (self.layer.matrix(self._spread(part)).contiguous() for part in (self.scale_RG, self.zero_RG))
        kept = self.layer.kept_GOI
        return [obq.Grid(scale=s, zero=z, kept=k, top=self.top) for s, z, k in zip(scale, zero, kept, strict=True)]

    def fitted(self, code_GOI: Tensor) -> Tensor:
        """Better scales ``[R, groups]`` under these codes: steps towards least squares; a scale stays positive."""
        layer = self.layer
        step_RC = layer.rows((code_GOI - self.layer.matrix(self._spread(self.zero_RG))) * layer.kept_GOI)

        def project(matrix_GOI: Tensor) -> Tensor:
            return self._sums(layer.rows(matrix_GOI) * step_RC)

        def normal(scale_RG: Tensor) -> Tensor:
            return project((layer.matrix(step_RC * self._spread(scale_RG)) * layer.kept_GOI) @ layer.gram_GII)

        diagonal_GOI = layer.gram_GII.diagonal(dim1=1, dim2=2)[:, None].expand_as(layer.weight_GOI)
        diagonal_RG = self._sums(layer.rows(diagonal_GOI) * step_RC.square())
        right_RG = project(layer.weight_GOI @ layer.gram_GII)
        found = conjugate_gradients.solve(normal, right_RG, diagonal_RG, self.scale_RG, STEPS)
        return half(found.where(found > 0, self.scale_RG))

    def _spread(self, part_RG: Tensor) -> Tensor:
        """A number for each group as one for each entry ``[R, C]``."""
        columns = self.layer.rows(self.layer.weight_GOI).shape[1]
        return part_RG.repeat_interleave(self.group, 1)[:, :columns]

    def _sums(self, rows_RC: Tensor) -> Tensor:
        """The sum of each group ``[R, groups]``."""
        padded = functional.pad(rows_RC, (0, -rows_RC.shape[1] % self.group))
        return padded.reshape(len(rows_RC), -1, self.group).sum(2)

"""Rounding with error compensation: codes of one layer that keep its outputs close to the original ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable
from kogata.forms import Affine, Dense, Role
from kogata.job import Kind, Site
from kogata.methods.kernels import conjugate_gradients, obq

SWEEPS = 8  # most sweeps of coordinate descent in each round; most rows converge sooner
STEPS = 4  # conjugate gradient steps for the scales in each round


@dataclass(frozen=True, kw_only=True)
class RoundedLayer:
    """A weight in the layout of its layer, ``[groups, outputs, columns]``, and the mapping to the rows ``[R, C]`` of its leaf.

    The leaf holds the whole weight; or, as a single row, the values kept by a mask, whose flat indices are ``position``. Where
    ``kept_GOI`` is false the weight is zero and stays zero. ``gram_GII`` is the damped Gram matrix of the inputs.
    """

    weight_GOI: Tensor
    gram_GII: Tensor
    kept_GOI: Tensor
    position: Tensor | None

    def rows(self, matrix_GOI: Tensor) -> Tensor:
        """The entries of a matrix that the leaf holds, ``[R, C]``."""
        return matrix_GOI.flatten(0, 1) if self.position is None else matrix_GOI.flatten()[None, self.position]

    def matrix(self, rows_RC: Tensor) -> Tensor:
        """The inverse of ``rows``; entries that the leaf does not hold are 1."""
        if self.position is None:
            return rows_RC.reshape(self.weight_GOI.shape)
        return rows_RC.new_ones(self.weight_GOI.numel()).scatter(0, self.position, rows_RC[0]).reshape(self.weight_GOI.shape)


def layer_of(weight: Tensor, site: Site, stats: Stats, damping: float) -> RoundedLayer:
    """The layer of a leaf. A lookup gives the rows of an embedding as they are, so its Gram matrix is the identity.

    Raises NotApplicable when the inputs could not be seen, DataError when a weight is not finite.
    """
    seen_GII = stats.gram_GII
    if seen_GII is None and site.kind is Kind.EMBEDDING:
        seen_GII = torch.eye(site.shape[-1], dtype=torch.float32)[None]
    if seen_GII is None:
        raise NotApplicable(stats.unseen)
    if not torch.isfinite(weight).all():
        raise DataError(f"{site.name} of shape {site.shape} holds NaN or infinite weights; repair the model first.")
    groups, columns, _ = seen_GII.shape
    flat, kept = weight.flatten(), torch.ones(weight.numel(), dtype=torch.bool)
    if stats.position is not None:
        size = torch.Size(site.shape).numel()
        flat, kept = (x.new_zeros(size).scatter(0, stats.position, x) for x in (flat, kept))
    return RoundedLayer(
        weight_GOI=flat.reshape(groups, -1, columns), gram_GII=obq.damped(seen_GII, damping),
        kept_GOI=kept.reshape(groups, -1, columns), position=stats.position,
    )  # fmt: skip


def factors_of(layer: RoundedLayer) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """For each group of the layer, the order of its columns (large inputs first), and ``obq.pivots`` in that order."""
    orders = [gram_II.diagonal().argsort(descending=True, stable=True) for gram_II in layer.gram_GII]
    return orders, [obq.pivots(gram_II, order) for gram_II, order in zip(layer.gram_GII, orders, strict=True)]


def rounded(layer: RoundedLayer, shape: torch.Size, *, bits: int, group: int | None, symmetric: bool, rounds: int) -> Affine:
    """The leaf of ``layer`` rounded to ``bits``, as codes of ``shape``. Entries that are not kept get the code of zero."""
    rows_RC = layer.rows(layer.weight_GOI)
    group = min(group or rows_RC.shape[1], rows_RC.shape[1])
    orders, factors = factors_of(layer)
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

    layer: RoundedLayer
    scale_RG: Tensor
    zero_RG: Tensor
    group: int
    top: int

    def grids(self) -> list[obq.Grid]:
        """The quantization grid of each group of the layer's outputs."""
        scale, zero = (self.layer.matrix(self._spread(part)).contiguous() for part in (self.scale_RG, self.zero_RG))
        kept = self.layer.kept_GOI
        return [obq.Grid(scale=s, zero=z, kept=k, top=self.top) for s, z, k in zip(scale, zero, kept, strict=True)]

    def fitted(self, code_GOI: Tensor) -> Tensor:
        """Scales ``[R, groups]`` closer to the least-squares fit for these codes; scales stay positive."""
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
        """Repeat a value for each group over its entries, ``[R, C]``."""
        columns = self.layer.rows(self.layer.weight_GOI).shape[1]
        return part_RG.repeat_interleave(self.group, 1)[:, :columns]

    def _sums(self, rows_RC: Tensor) -> Tensor:
        """The sum of each group ``[R, groups]``."""
        padded = functional.pad(rows_RC, (0, -rows_RC.shape[1] % self.group))
        return padded.reshape(len(rows_RC), -1, self.group).sum(2)


def half(scale: Tensor) -> Tensor:
    """Scales rounded to half precision, as float32. A scale outside the normal range of half precision stays as it is.

    The scale of a group of zeros is arbitrary and becomes the smallest normal number.
    """
    limits = torch.finfo(torch.float16)
    scale = scale.where(scale > 0, limits.smallest_normal)
    return scale.half().float().where((scale >= limits.smallest_normal) & (scale <= limits.max), scale)

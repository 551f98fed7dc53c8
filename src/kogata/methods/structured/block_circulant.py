"""Circulant projections: each block of a weight is a circulant matrix, defined by one vector.

Cheng, Yu, Feris, Kumar, Choudhary, Chang, ICCV 2015 (1502.03436), equations 2 to 6:
    y = C D x,   C[o, i] = r[(o − i) mod b],   D = diag(±1) at random,   y = F⁻¹(F(r) ∘ F(D x)).
There one block covers the whole weight; blocks of size b are from Ding et al., MICRO 2017 (1708.08917). Each entry of r fills
one diagonal, so the least-squares r for a trained weight is the mean of each of its signed diagonals.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.forms import Form, Role
from kogata.forms.structured_maps import Circulant
from kogata.forms.tied import Tied
from kogata.job import Site
from kogata.methods.base.guards import ResidualCount
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.structured import projection
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class BlockCirculant(WeightMethod):
    """Replace a matrix by circulant blocks of ``block`` × ``block`` (2 or more); None makes one block of the longer side.

    Where the block size does not divide a side, the last blocks are cropped. The random signs are seeded by the weight's name.
    ``residual`` is the rank of an added low-rank correction, 0 for none.

    >>> from kogata import only
    >>> from kogata.methods import BlockCirculant
    >>> from kogata.testing.models import job_of
    >>> job = only(BlockCirculant(block=8), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'tied'
    """

    block: Annotated[int, Range(ge=2)] | None = None
    residual: ResidualCount = 0

    ABOUT = About(
        name="circulant",
        family=projection.FAMILY,
        summary="circulant blocks, multiplied by fast Fourier transforms",
        paper="Cheng et al. 2015, arXiv 1502.03436",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest blocks that fit."""
        block = sizes.block(shape, fraction)
        return None if block is None else cls(block=block)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The mean of each signed diagonal of each block, and the correction."""
        shape = projection.matrix(weight, site).shape
        block = min(self.block or max(shape), max(shape))
        map = Circulant(block, zlib.crc32(site.name.encode()))
        form = Tied.of(map, weight, (*map.blocks(weight.shape), block))
        return projection.finished(form, weight, self.residual, f"blocks of {block}")

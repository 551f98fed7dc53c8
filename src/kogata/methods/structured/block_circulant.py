"""Circulant projections: every block of a weight is one vector, rotated by one place from column to column.

Cheng, Yu, Feris, Kumar, Choudhary, Chang, ICCV 2015 (1502.03436), equations 2 to 6:
    y = C D x,   C[o, i] = r[(o − i) mod b],   D = diag(±1) at random,   y = F⁻¹(F(r) ∘ F(D x)).
One block covers the whole weight there; blocks of b are Ding et al., MICRO 2017 (1708.08917). The r nearest to a trained
weight is the mean of its signed diagonals, as every entry of r is copied to one diagonal.
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
    """Circulant blocks of ``block`` entries; None is one block, as long as the longer side.

    Blocks run past the ends of sides that they do not divide, and are cropped there. The signs are seeded by the weight's name.
    ``residual`` is the rank of a matrix added to them, 0 for none.

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
        summary="blocks of one rotated vector each, multiplied by Fourier transforms",
        paper="Cheng et al. 2015, arXiv 1502.03436",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The smallest, and so the most, blocks."""
        block = sizes.block(shape, fraction)
        return None if block is None else cls(block=block)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The mean of the signed diagonals of each block, and the residual."""
        shape = projection.matrix(weight, site).shape
        block = min(self.block or max(shape), max(shape))
        map = Circulant(block, zlib.crc32(site.name.encode()))
        form = Tied.of(map, weight, (*map.blocks(weight.shape), block))
        return projection.finished(form, weight, self.residual, f"blocks of {block}")

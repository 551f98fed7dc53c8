"""Circulant projections: every block of a weight is one vector, rotated by one place from column to column.

Cheng, Yu, Feris, Kumar, Choudhary, Chang, ICCV 2015 (1502.03436), equations 2 to 6:
    y = C D x,   C[o, i] = r[(o − i) mod b],   D = diag(±1) at random,   y = F⁻¹(F(r) ∘ F(D x)).
One block covers the whole weight there; blocks of b are Ding et al., MICRO 2017 (1708.08917). The r nearest to a trained
weight is the mean of its signed diagonals, as every entry of r is copied to one diagonal.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Form, Role
from kogata.forms.structured_maps import Circulant
from kogata.forms.tied import Tied
from kogata.job import Site
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.structured import projection


@final
@dataclass(frozen=True, kw_only=True)
class BlockCirculant(WeightMethod):
    """Circulant blocks of ``block`` entries; None is one block, as long as the longer side.

    Blocks run past the ends of sides that they do not divide, and are cropped there. The signs are seeded by the weight's name.
    ``residual`` is the rank of a matrix added to them, 0 for none.
    """

    block: int | None = None
    residual: int = 0

    ABOUT = About(
        name="circulant",
        family=projection.FAMILY,
        summary="blocks of one rotated vector each, multiplied by Fourier transforms",
        paper="Cheng et al. 2015, arXiv 1502.03436",
        layers=projection.LAYERS,
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.MATRIX}),
    )
    GRID: ClassVar[Mapping[str, tuple[int, ...]]] = {"block": (4, 8, 16, 32, 64)}

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 2:
            raise UsageError(f"circulant: block is {self.block}; expected 2 or more, or nothing for one block.")
        projection.check_residual("circulant", self.residual)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The mean of the signed diagonals of each block, and the residual."""
        shape = projection.matrix(weight, site).shape
        block = min(self.block or max(shape), max(shape))
        map = Circulant(block, zlib.crc32(site.name.encode()))
        form = Tied.of(map, weight, (*map.blocks(weight.shape), block))
        return projection.finished(form, weight, self.residual, f"blocks of {block}")

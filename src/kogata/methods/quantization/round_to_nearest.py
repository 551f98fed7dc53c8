"""Round to nearest: n-bit codes, one scale for each group of a row.

The uniform affine quantizer of Vanhoucke, Senior, Mao, "Improving the speed of neural networks on CPUs", 2011, for any width
(Jacob et al., arXiv 1712.05877, eq. 1):  w ≈ s (q − z),  q = clamp(round(w / s) + z, 0, 2ᵇ − 1).
    symmetric   s = max|w| / (2ᵇ⁻¹ − 1),  z = 2ᵇ⁻¹
    asymmetric  s = (max w − min w) / (2ᵇ − 1) over a range that holds 0,  z = round(−min w / s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional

from kogata.calibration.stats import Stats
from kogata.forms import Affine, Form, Role
from kogata.forms.affine import as_rows
from kogata.job import Site
from kogata.methods.base.guards import Bits, Group
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import sizes
from kogata.methods.kernels.compensated import half


@final
@dataclass(frozen=True, kw_only=True)
class RoundToNearest(WeightMethod):
    """Round every weight to the nearest of 2**bits levels.

    ``bits`` is 1 to 8. ``group`` consecutive weights of a row share one scale and zero point; None means the whole row
    (per-channel). ``symmetric`` puts the zero point in the middle. It has no effect for one bit, where it would leave one
    level. Scales are rounded to half precision where they are in its range, so that each takes 16 bits in the file.

    >>> from kogata import only
    >>> from kogata.methods import RoundToNearest
    >>> from kogata.testing.models import job_of
    >>> job = only(RoundToNearest(bits=4, group=32), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'affine'
    """

    bits: Bits
    group: Group = None
    symmetric: bool = False

    ABOUT = About(
        name="round-to-nearest",
        family="quantization",
        summary="n-bit codes with a scale for each group of a row",
        paper="Vanhoucke et al. 2011; Jacob et al. 2018, arXiv 1712.05877",
        accepts=frozenset({Role.MATRIX, Role.VALUES, Role.VECTOR}),
        leaves=frozenset({Role.SCALE}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The most bits that leave room for the scale and the zero point of each row."""
        bits = sizes.bits(shape, fraction)
        return None if bits is None else cls(bits=bits)

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """Codes, with a scale and a zero point for each group."""
        group = min(self.group or as_rows(weight).shape[1], as_rows(weight).shape[1])
        scale, zero = self.grid(weight, group)
        return Affine.of(weight, scale, zero, bits=self.bits, group=group)

    def grid(self, weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, both ``[rows, groups]``."""
        rows = as_rows(weight)
        padded = functional.pad(rows.unsqueeze(0), (0, -rows.shape[1] % group), mode="replicate")[0]
        groups = padded.reshape(rows.shape[0], -1, group)
        if self.symmetric and self.bits > 1:
            scale = half(groups.abs().amax(2) / (2 ** (self.bits - 1) - 1))
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        scale = half((high - low) / (2**self.bits - 1))
        return scale, torch.round(-low / scale)

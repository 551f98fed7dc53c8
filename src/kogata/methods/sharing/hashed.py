"""HashedNets: weights that a hash function sends to the same bucket are one weight, up to a sign.

Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing Trick", ICML 2015 (1504.04788), section 4:
    V_ij = ξ(i, j) w_h(i, j),   ∂L/∂w_k = Σ_{h(i, j) = k} ξ(i, j) ∂L/∂V_ij.
The hash is computed, so only the buckets are stored. The paper trains them from scratch; of a trained weight they are the
least-squares projection w_k = mean of ξ(i, j) V_ij over its bucket, which keeps little of it: train afterwards.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.tied import Hash, Tied
from kogata.job import Site
from kogata.methods.base.guards import Fraction
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod


@final
@dataclass(frozen=True, kw_only=True)
class Hashed(WeightMethod):
    """Keep as many numbers as ``fraction`` of the weights, in (0, 1); each weight is plus or minus one of them.

    Every weight has a hash of its own, seeded by its name.

    >>> from kogata import only
    >>> from kogata.methods import Hashed
    >>> from kogata.testing.models import job_of
    >>> job = only(Hashed(fraction=0.1), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'tied'
    """

    fraction: Fraction

    ABOUT = About(
        name="hashed",
        family="sharing",
        summary="a hash function decides which weights are the same number",
        paper="Chen et al. 2015, arXiv 1504.04788",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.VALUES}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """As many buckets as there is room for numbers."""
        buckets = int(fraction * math.prod(shape))
        return cls(fraction=buckets / math.prod(shape)) if buckets else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The signed mean of each bucket."""
        buckets = round(self.fraction * weight.numel())
        if not 1 <= buckets < weight.numel():
            raise NotApplicable(f"{buckets} buckets for {weight.numel()} weights change nothing or leave nothing")
        return Tied.of(Hash(zlib.crc32(site.name.encode())), weight, (buckets,))

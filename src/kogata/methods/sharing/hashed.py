"""HashedNets: weights in the same bucket of a hash function share one value, up to a sign.

Chen, Wilson, Tyree, Weinberger, Chen, "Compressing Neural Networks with the Hashing Trick", ICML 2015 (1504.04788), section 4:
    V_ij = ξ(i, j) w_h(i, j),   ∂L/∂w_k = Σ_{h(i, j) = k} ξ(i, j) ∂L/∂V_ij.
The hash is computed, so only the values of the buckets are stored. The paper trains them from scratch. Here they are the
least-squares fit to a trained weight, w_k = mean of ξ(i, j) V_ij over the bucket. That is a poor approximation, so train
afterwards.
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
    """Store ``fraction`` of a weight's number of entries, in (0, 1); each entry is plus or minus one of the stored numbers.

    The hash function of each weight is seeded by its name.

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
        summary="a hash function decides which weights share a value",
        paper="Chen et al. 2015, arXiv 1504.04788",
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.VALUES}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The number of buckets that has the size."""
        buckets = int(fraction * math.prod(shape))
        return cls(fraction=buckets / math.prod(shape)) if buckets else None

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The signed mean of each bucket."""
        buckets = round(self.fraction * weight.numel())
        if not 1 <= buckets < weight.numel():
            raise NotApplicable(f"{buckets} buckets for {weight.numel()} weights change nothing or leave nothing")
        return Tied.of(Hash(zlib.crc32(site.name.encode())), weight, (buckets,))

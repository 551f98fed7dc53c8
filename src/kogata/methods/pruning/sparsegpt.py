"""SparseGPT: one-shot pruning that minimizes the error of the layer's outputs.

Frantar and Alistarh, "SparseGPT", ICML 2023 (2301.00774), equation 1, with H = XᵀX / rows:
    argmin over masks M and weights v of (w − M∘v) H (w − M∘v)ᵀ.
The paper chooses the mask block by block while it updates the columns to the right. Here the alternating direction method
chooses it for the whole layer at once, by the paper's criterion w² / [H⁻¹]_cc, and the kept weights are fitted by least squares
(Boža, 2401.02938; ``kernels/obs.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Form, Masked, Role
from kogata.job import Site
from kogata.methods.base.guards import Damping, Group, Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import obs, sizes
from kogata.methods.kernels.compensated import layer_of, rounded
from kogata.settings import Range

STEPS = 12  # conjugate gradient steps on the kept weights


@final
@dataclass(frozen=True, kw_only=True)
class SparseGPT(WeightMethod):
    """Prune weights and adjust the kept ones so that the layer's outputs on the calibration data change least.

    ``sparsity`` is the fraction of a layer's weights that become zero, in [0, 1); ``pattern`` ``(n, m)`` instead keeps ``n`` of
    every ``m`` consecutive weights of a row. Give exactly one of them, otherwise UsageError is raised. With ``bits`` (2 to 8)
    the kept weights are rounded as by GPTQ, with one scale for each ``group`` weights of a row, and pruned weights get the code
    of zero. ``damping`` is that of GPTQ.

    >>> from kogata import only
    >>> from kogata.methods import SparseGPT
    >>> from kogata.testing.models import job_of
    >>> job = only(SparseGPT(pattern=(2, 4)), "hidden").apply(job_of("conv"))
    >>> (job.model.hidden.weight.unflatten(1, (-1, 4)) != 0).sum(-1).unique()
    tensor([2])
    """

    sparsity: Sparsity | None = None
    pattern: tuple[int, int] | None = None
    bits: Annotated[int, Range(ge=2, le=8)] | None = None
    group: Group = None
    damping: Damping = 0.01

    ABOUT = About(
        name="sparsegpt",
        family="pruning",
        summary="one-shot pruning, unstructured or N:M, that adjusts the kept weights to compensate",
        paper="Frantar and Alistarh 2023, arXiv 2301.00774; Boža 2024, arXiv 2401.02938",
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.VALUES}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The sparsity at which the kept numbers and their mask have the size."""
        sparsity = sizes.sparsity(shape, fraction)
        return None if sparsity is None else cls(sparsity=sparsity)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.pattern is None):
            raise UsageError("sparsegpt: give either sparsity, such as 0.5, or pattern, such as [2, 4].")
        if self.pattern is not None and not 0 < self.pattern[0] < self.pattern[1]:
            raise UsageError(f"sparsegpt: pattern is {list(self.pattern)}; expected n of m with 0 < n < m, such as [2, 4].")
        if self.group is not None and self.bits is None:
            raise UsageError(f"sparsegpt: group is {self.group} but bits is null; give bits too, or leave out the group.")

    @property
    def leaves(self) -> frozenset[Role]:
        """The kept values, or with ``bits`` only scales."""
        return self.ABOUT.leaves if self.bits is None else frozenset({Role.SCALE})

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask, or codes."""
        layer = layer_of(weight, site, stats, self.damping)
        kept_GOI, start_GOI = obs.select(layer.weight_GOI, layer.gram_GII, self._chooser(layer.weight_GOI))
        found_GOI = obs.refit(layer.weight_GOI, layer.gram_GII, kept_GOI, start_GOI, STEPS)
        if self.bits is None:
            return Masked.of(found_GOI.reshape(weight.shape), kept_GOI.reshape(weight.shape))
        layer = replace(layer, weight_GOI=found_GOI, kept_GOI=kept_GOI)
        return rounded(layer, weight.shape, bits=self.bits, group=self.group, symmetric=False, rounds=1)

    def _chooser(self, weight_GOI: Tensor) -> obs.Choose:
        """The function that chooses the mask from scores.

        Raises NotApplicable when all or no weights would be kept, or when the pattern does not divide the rows.
        """
        if self.pattern is not None:
            n, m = self.pattern
            if weight_GOI.shape[2] % m:
                raise NotApplicable(f"rows of {weight_GOI.shape[2]} weights do not divide into groups of {m}")
            return lambda score, progress: _n_of_m(score, n, m)
        share, count = 1 - (self.sparsity or 0), weight_GOI.numel()
        if not 0 < round(share * count) < count:
            raise NotApplicable(f"keeping {round(share * count)} of {count} weights changes nothing or leaves nothing")
        return lambda score, progress: obs.largest(score, round((1 - progress * (1 - share)) * count))


def _n_of_m(score_GOI: Tensor, n: int, m: int) -> Tensor:
    """A mask of the ``n`` highest scores of every ``m`` consecutive ones in a row."""
    score = score_GOI.unflatten(2, (-1, m))
    order = score.argsort(dim=3, descending=True, stable=True)
    return torch.zeros(score.shape, dtype=torch.bool).scatter(3, order[..., :n], True).flatten(2)

"""Optimal Brain Surgeon: prune the weights whose removal costs least after the others have compensated for it.

Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992, equation 5:
    s_q = w_q² / (2 [H⁻¹]_qq),   δw = −w_q / [H⁻¹]_qq · H⁻¹ e_q.
H is the Hessian of the layer's squared output error, A = XᵀX / rows for each row (Dong, Chen, Pan, 1705.07565), or the
Kronecker product A ⊗ G, where G is the second moment of the gradients at its outputs (Martens and Grosse, 1503.05671). In that
case
    s_oi = w_oi² / (2 [A⁻¹]_ii [G⁻¹]_oo).
Hassibi and Stork remove one weight, update the others, and repeat. Here each of several rounds removes the same fraction of the
remaining weights; their joint update is the least-squares fit of the kept weights (``kernels/obs.py``). The next round ranks
the updated weights by the inverse of the full H instead of the kept part. With strongly correlated outputs this approximation
ends at up to twice the loss of removing one weight at a time, and at less than half the loss of removing all weights at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, final

import torch
from torch import Tensor

from kogata.calibration.stats import Stat, Stats
from kogata.errors import NotApplicable
from kogata.forms import Form, Masked, Role
from kogata.job import Kind, Site
from kogata.methods.base.guards import Damping, Sparsity
from kogata.methods.base.method import About
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels import obq, obs, sizes
from kogata.methods.kernels.compensated import RoundedLayer, layer_of

ROUNDS = 16
STEPS, LAST = 6, 40  # conjugate gradient steps on the kept weights in each round, and in the last one


@final
@dataclass(frozen=True, kw_only=True)
class OBS(WeightMethod):
    """Prune the weights with the lowest saliency in several rounds, and adjust the others to compensate.

    ``sparsity`` is the fraction of a layer's weights that become zero, in [0, 1). ``hessian`` is that of the layer's output
    error ("layer") or of the loss ("kronecker", which needs a loss and targets). ``damping``, above 0, is added to the diagonal
    of A and G, relative to its mean. With a diagonal Hessian this method would be Optimal Brain Damage.

    >>> from kogata import only
    >>> from kogata.methods import OBS
    >>> from kogata.testing.models import job_of
    >>> job = only(OBS(sparsity=0.75), "hidden").apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'masked'
    """

    sparsity: Sparsity
    hessian: Literal["layer", "kronecker"] = "layer"
    damping: Damping = 0.01

    ABOUT = About(
        name="obs",
        family="pruning",
        summary="prune the weights that the others can compensate for best",
        paper="Hassibi and Stork 1992; Dong et al. 2017, arXiv 1705.07565",
        layers=(Kind.LINEAR, Kind.CONV, Kind.OTHER),
        needs=frozenset({Stat.GRAM}),
        accepts=frozenset({Role.MATRIX}),
        leaves=frozenset({Role.VALUES}),
    )

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The sparsity at which the kept numbers and their mask have the size."""
        sparsity = sizes.sparsity(shape, fraction)
        return None if sparsity is None else cls(sparsity=sparsity)

    @property
    def needs(self) -> frozenset[Stat]:
        """The Gram matrices of the inputs; with the "kronecker" Hessian also those of the output gradients."""
        return self.ABOUT.needs if self.hessian == "layer" else self.ABOUT.needs | {Stat.GRADIENT}

    def encode(self, weight: Tensor, site: Site, stats: Stats) -> Form:
        """The kept weights under a mask, adjusted to compensate."""
        layer, outer_OO = layer_of(weight, site, stats, self.damping), None
        if self.hessian == "kronecker":
            if stats.gradient_OO is None:
                raise NotApplicable("the gradients at its outputs could not be seen")
            if len(layer.gram_GII) > 1:
                raise NotApplicable("the Hessian of a grouped convolution is not a Kronecker product")
            outer_OO = obq.damped(stats.gradient_OO, self.damping)
        return pruned(layer, weight.shape, self.sparsity, outer_OO)


def pruned(layer: RoundedLayer, shape: torch.Size, sparsity: float, outer_OO: Tensor | None = None) -> Masked:
    """The weights of highest saliency, adjusted. Raises NotApplicable when all or none of them would be kept."""
    count = shape.numel()
    keep = round((1 - sparsity) * count)
    if not 0 < keep < count:
        raise NotApplicable(f"keeping {keep} of {count} weights changes nothing or leaves nothing")
    cost_GOI = unit_cost(layer.gram_GII, outer_OO)
    found_GOI, kept_GOI = layer.weight_GOI, layer.kept_GOI
    for k in range(1, ROUNDS + 1):
        left = round(count * (keep / count) ** (k / ROUNDS))
        saliency_GOI = (found_GOI.square() * cost_GOI).where(kept_GOI, -1)
        kept_GOI = obs.largest(saliency_GOI, left)
        steps = STEPS if k < ROUNDS else LAST
        found_GOI = obs.refit(layer.weight_GOI, layer.gram_GII, kept_GOI, found_GOI, steps, outer_OO)
    return Masked.of(found_GOI.reshape(shape), kept_GOI.reshape(shape))


def unit_cost(gram_GII: Tensor, outer_OO: Tensor | None) -> Tensor:
    """1 / (2 [A⁻¹]_ii [G⁻¹]_oo), the saliency of a weight of 1, ``[G, O or 1, I]``. Without G, [G⁻¹]_oo counts as 1."""
    cost = 0.5 / torch.linalg.inv(gram_GII.double()).diagonal(dim1=1, dim2=2)[:, None]
    return (cost if outer_OO is None else cost / torch.linalg.inv(outer_OO.double()).diagonal()[:, None]).float()

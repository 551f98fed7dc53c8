"""Channel pruning: remove whole channels in every layer where they appear, and refit the layers that read them.

Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017 (1608.08710), rank channels by the norm
of their weights; here of all weights coupled to the channel, as in Fang et al., "DepGraph", CVPR 2023 (2301.12900), eq. 5:
    I_c = (Σ_{w coupled to c} w²)^½.
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (1906.10771), eq. 8, and Theis et al.,
"Faster gaze prediction with dense networks and Fisher pruning" (1801.05787), eq. 6: let z_c scale channel c; then
    taylor: I_c = Σ_n |∂L_n/∂z_c|,   fisher: I_c = Σ_n (∂L_n/∂z_c)²,   ∂L_n/∂z_c = Σ_{w reads c} w · ∂L_n/∂w.
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017 (1707.06168), eq. 3, the repair:
    W' = argmin ‖X Wᵀ − X_K W'ᵀ‖² + λ ‖W' − W_K‖² = W_K + W_D G_DK (G_KK + λ)⁻¹,   G = XᵀX,
where K are the columns that stay, D the columns that are removed, and X the inputs of the layer before the removal. Which
channels go is decided by their score; the LASSO by which that paper selects them (its eq. 2) is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor, nn

from kogata.calibration.batches import calibration_batches, first_batch
from kogata.calibration.gather import gather
from kogata.calibration.gradients import of_samples
from kogata.calibration.stats import Stat
from kogata.errors import DataError
from kogata.job import Job, Kind
from kogata.methods.base.channel import ChannelMethod, Removal
from kogata.methods.base.guards import Sparsity
from kogata.methods.base.method import About
from kogata.network import surgery
from kogata.network.channels.groups import Cut, Group, Slice
from kogata.network.channels.masked import dead
from kogata.network.sites import sites_of
from kogata.settings import Range


@final
@dataclass(frozen=True, kw_only=True)
class ChannelPruning(ChannelMethod):
    """Remove the least important channels. The result is a smaller model of ordinary layers.

    ``sparsity`` is the fraction of channels to remove, in [0, 1): of each group of coupled channels (``scope`` "layer"), or of
    all groups together ("global"), where norms are compared relative to the mean of their group. ``score`` is the importance of
    a channel; those that no weight makes or reads any more, as after group lasso, go first, and all of them. "taylor" and
    "fisher" need a loss and targets, and raise DataError without them. With ``repair``, the layers that read the channels are
    refitted to their former outputs, by the second step of He et al.; their LASSO, which would select the channels, is not
    used. ``ridge`` is λ relative to the mean square of the remaining inputs. Raises NotApplicable when no channel can be
    removed.

    >>> from kogata.methods import ChannelPruning
    >>> from kogata.testing.models import job_of
    >>> ChannelPruning(sparsity=0.5).apply(job_of("conv")).model.deep
    Conv2d(8, 12, kernel_size=(3, 3), stride=(1, 1))
    """

    sparsity: Sparsity
    score: Literal["norm", "taylor", "fisher"] = "norm"
    scope: Literal["layer", "global"] = "layer"
    repair: bool = True
    ridge: Annotated[float, Range(gt=0, example=1e-3)] = 1e-3

    ABOUT = About(
        name="channels",
        family="pruning",
        summary="remove whole channels everywhere they appear",
        paper="Li et al. 2017, arXiv 1608.08710; He et al. 2017, arXiv 1707.06168; Fang et al. 2023, arXiv 2301.12900",
        layers=(Kind.LINEAR, Kind.CONV, Kind.EMBEDDING),
        data=True,
    )

    def plan(self, job: Job, groups: Sequence[Group]) -> Removal:
        """The least important channels, and the refitted weights that read them."""
        scores = [_norm(job.model, group) for group in groups] if self.score == "norm" else self._sensitivities(job, groups)
        if self.scope == "global" and self.score == "norm":
            scores = [score / score.mean().clamp_min(torch.finfo(score.dtype).tiny) for score in scores]
        scores = [score.masked_fill(dead(job.model, group), -1) for score, group in zip(scores, groups, strict=True)]
        dropped = _lowest(scores, self.sparsity) if self.scope == "global" else [_lowest([s], self.sparsity)[0] for s in scores]
        cuts = list(zip(groups, dropped, strict=True))
        grams = _grams(job, [cut for cut in cuts if len(cut[1])]) if self.repair else {}

        def weights(some: Sequence[Cut]) -> Mapping[str, Tensor]:
            gone = _columns(some)
            return {
                name: repaired(job.model.get_parameter(name).detach(), gram_II, gone[name], self.ridge)
                for name, gram_II in grams.items() if name in gone
            }  # fmt: skip

        return Removal(cuts, weights)

    def _sensitivities(self, job: Job, groups: Sequence[Group]) -> list[Tensor]:
        """Σ_n |∂L_n/∂z| or Σ_n (∂L_n/∂z)² for the channels of each group, summed over the samples n of the calibration data."""
        model = surgery.clone(job.model, share=False).eval().requires_grad_(False)
        names = sorted({part.name for group in groups for part in group.slices if part.reads})
        if job.task.loss is None or first_batch(model, job.task)[1] is None:
            raise DataError(
                f"channels: score {self.score!r} needs the loss of task {job.task.name!r} and calibration batches with "
                "targets; give both, or use the score 'norm'."
            )
        readers = {name: model.get_parameter(name) for name in names}
        totals = [torch.zeros(group.channels, dtype=torch.float64) for group in groups]
        samples = of_samples(model, job, calibration_batches(model, job.task), list(readers.values())) if groups else ()
        for found in samples:
            slopes = {name: w.detach() * (0 if g is None else g) for (name, w), g in zip(readers.items(), found, strict=True)}
            for total, group in zip(totals, groups, strict=True):
                parts = [_entries(slopes[part.name], part).sum(1) for part in group.slices if part.reads]
                slope = torch.stack(parts).sum(0)
                total += slope.abs() if self.score == "taylor" else slope.square()
        if not all(torch.isfinite(total).all() for total in totals):
            raise DataError("channels: the gradients of the loss are NaN or infinite; check the calibration data and the loss.")
        return totals


def _entries(tensor: Tensor, part: Slice) -> Tensor:
    """The entries of a tensor that belong to each channel, ``[channels, entries]``, float64."""
    return tensor.double().cpu().movedim(part.axis, 0)[part.index_CK].flatten(1)


def _norm(model: nn.Module, group: Group) -> Tensor:
    """I_c of each channel, over the matrices that produce, scale or read it."""
    tensors = [(model.state_dict(keep_vars=True)[part.name].detach(), part) for part in group.slices]
    return torch.stack([_entries(t, part).square().sum(1) for t, part in tensors if t.ndim >= 2]).sum(0).sqrt()


def _lowest(scores: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """The channels of each group that are in the lowest ``fraction`` of all, and all with a score below 0.

    The best channel of each group always stays.
    """
    guarded = [score.index_fill(0, score.argmax(), float("inf")) for score in scores]
    together = torch.cat(guarded) if guarded else torch.empty(0)
    count = min(max(round(fraction * len(together)), int((together < 0).sum())), len(together) - len(guarded))
    gone = torch.zeros(len(together), dtype=torch.bool).index_fill(0, together.argsort(stable=True)[:count], True)
    return [part.nonzero().flatten() for part in gone.split([len(score) for score in scores])]


def _columns(cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """The input channels that each weight loses."""
    found: dict[str, Tensor] = {}
    for group, channels in cuts:
        for part in group.slices:
            if part.reads and part.axis == 1:
                entries = part.index_CK[channels].flatten()
                found[part.name] = torch.cat([found[part.name], entries]) if part.name in found else entries
    return found


def _grams(job: Job, cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """XᵀX / rows for each layer that loses columns and whose inputs can be observed."""
    wanted = _columns(cuts)
    sites = [site for site in sites_of(job.model) if site.name in wanted]
    with closing(gather(job, dict.fromkeys(sites, frozenset({Stat.GRAM})), job.model)) as gathered:
        return {site.name: stats.gram_GII[0] for site, stats in gathered if stats.gram_GII is not None}


def repaired(weight: Tensor, gram_II: Tensor, gone: Tensor, ridge: float) -> Tensor:
    """``weight`` ``[outputs, channels, ...]``, with the remaining columns refitted to the outputs of all columns.

    ``gone`` are the input channels that are removed; ``gram_II`` is XᵀX for the inputs of the flattened weight.
    """
    weight_OI, gram_II = weight.flatten(1).double().cpu(), gram_II.double()
    stays = torch.ones(weight.shape[1], dtype=torch.bool).index_fill(0, gone, False)
    stays = stays.repeat_interleave(weight_OI.shape[1] // weight.shape[1])  # one entry for each position of the kernel
    gram_KK, gram_KD = gram_II[stays][:, stays], gram_II[stays][:, ~stays]
    energy_K = gram_KK.diagonal()
    # An input that is always 0 gets a diagonal of 1, which leaves its column as it is; without it the matrix would be singular.
    damping_K = torch.where(energy_K > 0, ridge * energy_K.mean(), 1.0)
    solved_KO = torch.linalg.solve(gram_KK + damping_K.diag(), gram_KD @ weight_OI[:, ~stays].T)
    fitted_OI = weight_OI.clone()
    fitted_OI[:, stays] += solved_KO.T
    return fitted_OI.reshape(weight.shape)

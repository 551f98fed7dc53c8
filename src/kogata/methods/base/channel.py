"""Methods that remove coupled channels. The result is a smaller model of ordinary layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kogata.calibration.batches import first_batch
from kogata.calibration.normalization import following, renewed
from kogata.calibration.probe import Probe, most_changed
from kogata.errors import NotApplicable
from kogata.forms import Role
from kogata.job import Job, Row, Site
from kogata.methods.base.method import About, Method
from kogata.methods.base.selection import refuse_idle, row_of
from kogata.network import surgery
from kogata.network.channels.groups import Coupling, Cut, Group, coupled, cut_tensor, remove
from kogata.network.channels.masked import mask_again, unmasked
from kogata.network.sharing import place_of
from kogata.network.sites import form_at, form_of, known_sites, selected_sites, sites_of


@dataclass(frozen=True, eq=False)
class Removal:
    """Which channels to remove, and how to adjust the layers that read them.

    ``weights`` takes some of the cuts and returns new values, in their old shapes, for the weights that read these channels.
    ``kept`` gives, by the name of a group, the reason why the group keeps all its channels.
    """

    cuts: Sequence[Cut]
    weights: Callable[[Sequence[Cut]], Mapping[str, Tensor]]
    kept: Mapping[str, str] = field(default_factory=dict[str, str])


class ChannelMethod(Method):
    """Chooses channels from groups of coupled channels and removes them in every layer.

    Only plain weights can shrink, and weights under a mask of whole rows and columns, as group lasso leaves them.
    """

    ABOUT: ClassVar[About]

    @abstractmethod
    def plan(self, job: Job, groups: Sequence[Group]) -> Removal:
        """The channels of ``groups`` to remove; at least one channel of each group must stay."""

    def apply(self, job: Job) -> Job:
        """Plan the removal and shrink the model.

        A channel can be removed only if every weight that produces it is selected. The layers that read it lose the matching
        columns, whether they are selected or not. With ``job.explain``, the increase of the loss is measured for each of the
        groups that lose the largest weights, one group at a time. Raises NotApplicable when no channel can be removed.
        """
        name, given = self.ABOUT.name, job
        plain, masks = unmasked(job.model)
        job = replace(job, model=plain)
        try:
            coupling = coupled(job.model, first_batch(job.reference, job.task)[0])
        except NotApplicable as error:
            raise NotApplicable(f"{name}: {error}") from error
        groups, notes = _allowed(job, coupling)
        plan = self.plan(job, groups)
        cuts = [cut for cut in plan.cuts if len(cut[1])]
        notes |= {group.name: "none of its channels is chosen for removal" for group, gone in plan.cuts if not len(gone)}
        notes |= plan.kept
        if not cuts:
            refuse_idle(name, notes or {"the model": "no layer makes channels"})
        model = _shrunk(job.model, cuts, plan)
        mask_again(model, masks, cuts)
        rows = _rows(name, given, model, _losses(job, cuts, plan), notes)
        left = {
            path: cut_tensor(f"{path}.running_mean", torch.arange(len(layer.get_buffer("running_mean"))), cuts)
            for path, layer in following(job.model).items()
        }  # fmt: skip
        return renewed(job, replace(job, model=model, ledger=(*job.ledger, *rows)), left)

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Raises NotApplicable when no selected weight is still plain, without sparsity or quantization."""
        if not any(Role.MATRIX in roles[site] for site in selected_sites(job)):
            raise NotApplicable(
                f"{self.ABOUT.name}: it removes channels of plain weights, but at this point of the chain none is left. "
                "Structure comes first, then sparsity, then precision."
            )
        return roles


def _shrunk(model: nn.Module, cuts: Sequence[Cut], plan: Removal) -> nn.Module:
    twin = surgery.clone(model)
    names: dict[Hashable, list[str]] = {}  # all names of a tied weight
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(place_of(parameter), []).append(name)
    for name, weight in plan.weights(cuts).items():
        old = model.get_parameter(name)
        new = nn.Parameter(weight.to(old), old.requires_grad)
        for other in names[place_of(old)]:
            path, _, key = other.rpartition(".")
            setattr(twin.get_submodule(path), key, new)
    return remove(twin, cuts)


def _losses(job: Job, cuts: Sequence[Cut], plan: Removal) -> dict[str, float]:
    """The increase of the loss by the name of the group, for the largest removals, each measured alone."""
    if not job.explain:
        return {}
    probe, by_name = Probe(job), {cut[0].name: cut for cut in cuts}
    chosen = most_changed({name: _taken(job.model, *cut) for name, cut in by_name.items()})
    return {name: probe.loss(_shrunk(job.model, [by_name[name]], plan)) - probe.base for name in chosen}


def _taken(model: nn.Module, group: Group, gone: Tensor) -> float:
    """The squared norm of the weights that produce these channels."""
    makers = [(model.get_parameter(part.name).detach(), part) for part in group.slices if part.makes]
    taken = [weight.index_select(part.axis, part.index_CK[gone].flatten().to(weight.device)) for weight, part in makers]
    return sum(float(weight.double().square().sum()) for weight in taken)


def _allowed(job: Job, coupling: Coupling) -> tuple[list[Group], dict[str, str]]:
    """The groups that the job's selection allows, and for each other selected weight the reason why it keeps its channels."""
    chosen = {name: site for site in selected_sites(job) for name in (site.name, *site.aliases)}
    groups: list[Group] = []
    notes: dict[str, str] = {}
    for group in coupling.groups:
        makers = [part.name for part in group.slices if part.makes]
        others = [name for name in makers if name not in chosen]
        if not others:
            groups.append(group)
        notes |= {
            chosen[name].name: f"its channels are coupled to those of {', '.join(others)}, which is not selected"
            for name in makers if others and name in chosen
        }  # fmt: skip
    for name, site in chosen.items():
        if name in coupling.refused:
            notes[site.name] = coupling.refused[name]
        elif form_of(job.model.get_submodule(site.module), site.parameter) is not None:
            notes[site.name] = "it holds a form already, and structure comes before sparsity and precision"
    return groups, notes


def _rows(method: str, job: Job, model: nn.Module, losses: Mapping[str, float], notes: Mapping[str, str]) -> list[Row]:
    """One row for each site that shrank and for each selected site that did not, the latter with the reason.

    The measured increase of the loss stands in the row of the site that produces the channels.
    """
    chosen, rows = set(selected_sites(job)), list[Row]()
    for site, after in zip(known_sites(job), sites_of(model), strict=True):
        names = (site.name, *site.aliases)
        if site.shape != after.shape:
            loss = next((losses[name] for name in names if name in losses), None)
            row = row_of(method, site, form_at(job.model, site), form_at(model, after))
            rows.append(replace(row, loss=loss))
        elif site in chosen:
            note = next((notes[name] for name in names if name in notes), "its channels stay")
            form = form_at(job.model, site)
            rows.append(row_of(method, site, form, form, note))
    return rows

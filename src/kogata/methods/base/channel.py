"""Methods that remove coupled channels: what they leave is a smaller plain model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from kogata.calibration.probe import Probe
from kogata.errors import NotApplicable
from kogata.forms import Role
from kogata.job import Job, Row, Site
from kogata.methods.base.method import About, Method
from kogata.network import surgery
from kogata.network.channels.groups import Coupling, Cut, Group, coupled, remove
from kogata.network.sites import form_at, form_of, known_sites, selected_sites, sites_of


@dataclass(frozen=True, eq=False)
class Removal:
    """The channels that go; for some of these cuts, new values of the weights that read them, in their old shapes."""

    cuts: Sequence[Cut]
    weights: Callable[[Sequence[Cut]], Mapping[str, Tensor]]
    kept: Mapping[str, str] = field(default_factory=dict[str, str])  # why a group keeps all its channels, by its name


class ChannelMethod(Method):
    """Chooses channels of coupled groups and removes them wherever they appear. Only plain weights can shrink."""

    ABOUT: ClassVar[About]

    @abstractmethod
    def plan(self, job: Job, groups: Sequence[Group]) -> Removal:
        """What to remove of ``groups``; of each at least one channel must stay."""

    def apply(self, job: Job) -> Job:
        """Plan, shrink, and measure what each group alone does to the loss.

        Channels go where every weight that makes them is selected; the layers that read them lose columns, selected or not.
        """
        probe, name = Probe(job), self.ABOUT.name
        try:
            coupling = coupled(job.model, probe.inputs)
        except NotApplicable as error:
            raise NotApplicable(f"{name}: {error}") from error
        groups, notes = _allowed(job, coupling)
        plan = self.plan(job, groups)
        cuts = [cut for cut in plan.cuts if len(cut[1])]
        notes |= {group.name: "none of its channels is among those to go" for group, gone in plan.cuts if not len(gone)}
        notes |= plan.kept
        if not cuts:
            reasons = "; ".join(f"{site}: {note}" for site, note in notes.items()) or "no layer makes channels"
            raise NotApplicable(f"{name}: nothing to do. {reasons}.")
        model = _shrunk(job.model, cuts, plan)
        losses = {cut[0].name: probe.loss(_shrunk(job.model, [cut], plan)) - probe.base for cut in cuts}
        rows = _rows(name, job, model, losses, notes)
        return replace(job, model=model, ledger=(*job.ledger, *rows))

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Raises NotApplicable when no selected weight is as yet free of sparsity and precision."""
        if not any(Role.MATRIX in roles[site] for site in selected_sites(job)):
            raise NotApplicable(
                f"{self.ABOUT.name}: it removes channels of plain weights, but at this point of the chain none is left. "
                "Structure comes first, then sparsity, then precision."
            )
        return roles


def _shrunk(model: nn.Module, cuts: Sequence[Cut], plan: Removal) -> nn.Module:
    twin = surgery.clone(model)
    for name, weight in plan.weights(cuts).items():
        old = model.get_parameter(name)
        new = nn.Parameter(weight.to(old), old.requires_grad)
        for other, parameter in model.named_parameters(remove_duplicate=False):
            if parameter is old:  # under all names of a tied weight
                path, _, key = other.rpartition(".")
                setattr(twin.get_submodule(path), key, new)
    return remove(twin, cuts)


def _allowed(job: Job, coupling: Coupling) -> tuple[list[Group], dict[str, str]]:
    """The groups that the job's restrictions allow, and why each other selected weight keeps its channels."""
    chosen = {name: site for site in selected_sites(job) for name in (site.name, *site.aliases)}
    groups: list[Group] = []
    notes: dict[str, str] = {}
    for group in coupling.groups:
        makers = [part.name for part in group.slices if part.makes]
        others = [name for name in makers if name not in chosen]
        if not others:
            groups.append(group)
        notes |= {
            chosen[name].name: f"its channels are also those of {', '.join(others)}, not selected"
            for name in makers if others and name in chosen
        }  # fmt: skip
    for name, site in chosen.items():
        if name in coupling.refused:
            notes[site.name] = coupling.refused[name]
        elif form_of(job.model.get_submodule(site.module), site.parameter) is not None:
            notes[site.name] = "it holds a form already, and structure comes before sparsity and precision"
    return groups, notes


def _rows(method: str, job: Job, model: nn.Module, losses: Mapping[str, float], notes: Mapping[str, str]) -> list[Row]:
    """One row for each site that shrank, with the loss where it makes the group's channels, and for each that could not."""
    chosen, rows = set(selected_sites(job)), list[Row]()
    for site, after in zip(known_sites(job), sites_of(model), strict=True):
        before = form_at(job.model, site).stored_bits() if site.shape != after.shape or site in chosen else 0.0
        if site.shape != after.shape:
            bits = form_at(model, after).stored_bits()
            loss = next((losses[name] for name in (site.name, *site.aliases) if name in losses), None)
            rows.append(Row(method=method, site=site.name, bits_before=before, bits_after=bits, loss=loss))
        elif site in chosen:
            note = next((notes[name] for name in (site.name, *site.aliases) if name in notes), "its channels stay")
            rows.append(Row(method=method, site=site.name, bits_before=before, bits_after=before, note=note))
    return rows

"""Check the order of a chain before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from kogata.forms import Role
from kogata.job import Job, Site
from kogata.methods.base.compose import Only
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.network.sites import form_at, known_sites, selected_sites


def check_order(method: Method, job: Job) -> None:
    """Raise NotApplicable or UsageError where the chain is illegal or a glob matches nothing, before anything is trained."""
    method.check(roles_of(job), job)


def roles_of(job: Job) -> dict[Site, frozenset[Role]]:
    """What the leaves of each site are before the first step."""
    return {site: frozenset(leaf.role for _, leaf in form_at(job.model, site).leaves()) for site in known_sites(job)}


def planned_steps(method: Method, job: Job) -> list[tuple[str, list[str] | None]]:
    """Each step's title and the names of the weights it will try; None where it works on the model as a whole."""
    held: Mapping[Site, frozenset[Role]] = roles_of(job)
    lines: list[tuple[str, list[str] | None]] = []
    for step in method.steps():
        inner, within, sites = step, job, None
        while isinstance(inner, Only):
            inner, within = inner.method, within.within(inner.where)
        if isinstance(inner, WeightMethod):
            chosen = selected_sites(within)
            sites = [s.name for s in chosen if s.kind in inner.ABOUT.layers and held[s] & inner.ACCEPTS]
        lines.append((step.title(), sites))
        held = step.check(held, job)
    return lines

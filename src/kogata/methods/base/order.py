"""Check the order of a chain before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from kogata.forms import Role
from kogata.job import Job, Site
from kogata.methods.base.compose import Only, PerSite
from kogata.methods.base.method import Method
from kogata.methods.base.selection import reason_against, roles_at
from kogata.methods.base.weight import WeightMethod
from kogata.network.sites import selected_sites, sites_of


def check_order(method: Method, job: Job) -> None:
    """Raise NotApplicable or UsageError where the chain is illegal or a glob matches nothing, before anything is trained."""
    method.check(roles_of(job), job)


def roles_of(job: Job) -> dict[Site, frozenset[Role]]:
    """What the leaves of each site are before the first step."""
    return {site: roles_at(job.model, site) for site in sites_of(job.model)}


def planned_steps(method: Method, job: Job) -> list[tuple[str, list[str] | None]]:
    """Each step's title and the names of the weights it will try; None where it works on the model as a whole."""
    held: Mapping[Site, frozenset[Role]] = roles_of(job)
    lines: list[tuple[str, list[str] | None]] = []
    for step in method.steps():
        inner, within = step, job
        while isinstance(inner, Only):
            inner, within = inner.method, within.within(inner.where)
        tried = inner.assigned(within) if isinstance(inner, PerSite) else ()
        if isinstance(inner, WeightMethod):
            tried = [(inner, selected_sites(within))]
        names = [site.name for method, sites in tried for site in sites if not reason_against(method, site, held[site])]
        lines.append((step.title(), names if tried else None))
        held = step.check(held, job)
    return lines

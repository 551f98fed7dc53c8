"""Checks on the order of the steps of a chain, made before any step runs."""

from __future__ import annotations

from collections.abc import Mapping

from kogata.forms import Role
from kogata.job import Job, Site
from kogata.methods.base.compose import Only, PerSite
from kogata.methods.base.method import Method
from kogata.methods.base.selection import reason_against, roles_at
from kogata.methods.base.weight import WeightMethod
from kogata.network.sites import known_sites, selected_sites


def check_order(method: Method, job: Job) -> None:
    """Raise NotApplicable when the order of steps is illegal, or UsageError when a glob matches nothing."""
    method.check(roles_of(job), job)


def roles_of(job: Job) -> dict[Site, frozenset[Role]]:
    """The roles of the leaves of each site before the first step."""
    return {site: roles_at(job.model, site) for site in known_sites(job)}


def planned_steps(method: Method, job: Job) -> list[tuple[str, list[str] | None]]:
    """The title of each step and the names of the weights that it will try to encode; None for a step on the whole model."""
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

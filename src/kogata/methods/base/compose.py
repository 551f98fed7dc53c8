"""Combining methods gives a method: chains, restrictions to some sites, and plans with one method for each site."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from kogata.errors import UsageError
from kogata.forms import Role
from kogata.job import Job, Site, Where
from kogata.methods.base.method import Method
from kogata.methods.base.selection import follow, row_of
from kogata.methods.base.weight import WeightMethod, encode_sites
from kogata.network.sites import form_at, selected_sites


@final
@dataclass(frozen=True)
class Chain(Method):
    """Several methods applied in sequence. Made by :func:`chain`."""

    methods: tuple[Method, ...]

    def title(self) -> str:
        """The titles, joined by arrows."""
        return " → ".join(method.title() for method in self.methods)

    def settings(self) -> dict[str, Any]:
        """The settings of each method, in a list."""
        return {"steps": [method.settings() for method in self.methods]}

    def apply(self, job: Job) -> Job:
        """Apply each method in turn to the job that the one before returned."""
        for method in self.methods:
            job = method.apply(job)
        return job

    def steps(self) -> tuple[Method, ...]:
        """The steps of all methods, in order."""
        return tuple(step for method in self.methods for step in method.steps())

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through each method in turn; raises NotApplicable on an illegal order."""
        for method in self.methods:
            roles = method.check(roles, job)
        return roles


@final
@dataclass(frozen=True)
class Only(Method):
    """A method restricted to some sites. Made by :func:`only`."""

    method: Method
    where: Where

    def title(self) -> str:
        """The method's title."""
        return self.method.title()

    def settings(self) -> dict[str, Any]:
        """The method's settings, and under ``where`` those fields of the restriction that are not the default."""
        default, where = dataclasses.asdict(Where()), dataclasses.asdict(self.where)
        changed = {
            key: [str(part) for part in value] if isinstance(value, tuple) else value
            for key, value in where.items()
            if value != default[key]
        }
        return self.method.settings() | {"where": changed}

    def apply(self, job: Job) -> Job:
        """Apply within the restriction, then lift it."""
        return replace(self.method.apply(job.within(self.where)), where=job.where)

    def steps(self) -> tuple[Method, ...]:
        """The steps of the method, each under the same restriction."""
        return tuple(Only(step, self.where) for step in self.method.steps())

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Check within the restriction."""
        return self.method.check(roles, job.within(self.where))


@final
@dataclass(frozen=True)
class PerSite(Method):
    """One method for each glob, all applied in a single pass over the calibration data. Made by :func:`per_site`."""

    plan: tuple[tuple[str, WeightMethod], ...]

    def title(self) -> str:
        """The titles of its methods, each once."""
        return " + ".join(dict.fromkeys(method.title() for _, method in self.plan))

    def settings(self) -> dict[str, Any]:
        """The settings of the method for each glob."""
        return {"per-site": {glob: method.settings() for glob, method in self.plan}}

    def apply(self, job: Job) -> Job:
        """Encode all weights that a glob matches, in one pass over the calibration data."""
        assigned = self.assigned(job)
        after = encode_sites(job, assigned)
        matched = {site for _, sites in assigned for site in sites}
        others = [(site, form_at(job.model, site)) for site in selected_sites(job) if site not in matched]
        rows = [row_of("per-site", site, form, form, "no glob of the plan matches it") for site, form in others]
        return replace(after, ledger=(*after.ledger, *rows))

    def assigned(self, job: Job) -> list[tuple[WeightMethod, Sequence[Site]]]:
        """Each method with its sites: those selected sites for which its glob is the first to match.

        Raises UsageError when a glob gets no site.
        """
        plain = {glob: n for n, (glob, _) in enumerate(self.plan) if not set(glob) & set("*?[")}  # a name: looked up, not tried
        globs = [(n, Where(layers=(glob,))) for n, (glob, _) in enumerate(self.plan) if glob not in plain]
        found: list[list[Site]] = [[] for _ in self.plan]
        chosen = selected_sites(job)
        for site in chosen:
            names = [(name, name.rpartition(".")[0]) for name in (site.name, *site.aliases)]
            hits = [plain[name] for pair in names for name in pair if name in plain]
            hits += [n for n, where in globs if any(where.wants(*pair) for pair in names)]
            if hits:
                found[min(hits)].append(site)
        for (glob, _), sites in zip(self.plan, found, strict=True):
            if not sites:
                raise UsageError(
                    f"per_site: {glob!r} applies to no weight: it matches none, or earlier globs match all of its weights. "
                    f"The selected weights are {', '.join(site.name for site in chosen)}."
                )
        return [(method, sites) for (_, method), sites in zip(self.plan, found, strict=True)]

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Follow the roles through each method at its own sites."""
        for method, sites in self.assigned(job):
            roles = follow(method, roles, sites)
        return roles


def chain(*methods: Method) -> Method:
    """Apply methods in sequence: first structure, then sparsity, then precision, each followed by ``Recover`` if wanted.

    The order is checked when the chain runs, before any step: an illegal one raises NotApplicable.

    >>> from kogata import chain
    >>> from kogata.methods import KMeans, MagnitudePruning
    >>> from kogata.testing.models import job_of
    >>> job = chain(MagnitudePruning(sparsity=0.9), KMeans(clusters=16)).apply(job_of("conv"))
    >>> job.model.hidden.parametrizations.weight[0].describe()
    'masked(codebook)'
    """
    return Chain(methods)


def only(method: Method, where: Where | str) -> Method:
    """Restrict a method to some sites, given by a :class:`Where` or by one glob on the names of weights or layers.

    A glob that matches no weight raises UsageError when the method runs.

    >>> from kogata import only
    >>> from kogata.methods import RoundToNearest
    >>> only(RoundToNearest(bits=8), "classifier.*").where.layers
    ('classifier.*',)
    """
    return Only(method, Where(layers=(where,)) if isinstance(where, str) else where)


def per_site(plan: Mapping[str, Method]) -> Method:
    """Apply a different method to each group of weights in one step. For each weight, the first matching glob decides.

    Calibration runs once for the whole plan, and each weight is encoded on the inputs produced by the already compressed layers
    before it. Selected weights that no glob matches stay as they are, and the report names them. Every method must encode one
    weight at a time in a single step; otherwise UsageError is raised. Put training, channel pruning, or pruning in several
    rounds before or after the plan with :func:`chain`.

    >>> from kogata import per_site
    >>> from kogata.methods import GPTQ, RoundToNearest
    >>> per_site({"encoder.*": GPTQ(bits=3), "*": RoundToNearest(bits=8)}).title()
    'gptq + round-to-nearest'
    """
    if not plan:
        raise UsageError("per_site: the plan is empty; give at least one glob and its method.")
    found = list[tuple[str, WeightMethod]]()
    for glob, method in plan.items():
        if not isinstance(method, WeightMethod) or len(method.steps()) != 1:
            raise UsageError(
                f"per_site: {glob!r} asks for {method.title()}, which does not encode one weight at a time in a single step. "
                f"Put it before or after the plan: chain(only({type(method).__name__}(...), {glob!r}), per_site(...))."
            )
        found.append((glob, method))
    return PerSite(tuple(found))

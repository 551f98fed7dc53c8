"""Composing methods gives a method: chains, restrictions, and plans for each weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from kogata.forms import Role
from kogata.job import Job, Site, Where
from kogata.methods.base.method import Method


@final
@dataclass(frozen=True)
class Chain(Method):
    """One method after another. Made by :func:`chain`."""

    methods: tuple[Method, ...]

    def title(self) -> str:
        """The titles, joined by arrows."""
        return " → ".join(method.title() for method in self.methods)

    def settings(self) -> dict[str, Any]:
        """The settings of each method, in a list."""
        return {"steps": [method.settings() for method in self.methods]}

    def apply(self, job: Job) -> Job:
        """Each in turn."""
        for method in self.methods:
            job = method.apply(job)
        return job

    def steps(self) -> tuple[Method, ...]:
        """The steps of each, in turn."""
        return tuple(step for method in self.methods for step in method.steps())

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """Each in turn."""
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
        """The method's settings and where it works; a restriction says only what it restricts."""
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


def chain(*methods: Method) -> Method:
    """One method after another: structure, then sparsity, then precision, each followed by a recovery if wanted."""
    return Chain(methods)


def only(method: Method, where: Where | str) -> Method:
    """The method on some sites only: a :class:`Where`, or one glob on the names of weights or layers.

    >>> from kogata.methods import RoundToNearest
    >>> only(RoundToNearest(bits=8), "classifier.*").where.layers
    ('classifier.*',)
    """
    return Only(method, Where(layers=(where,)) if isinstance(where, str) else where)


def per_site(plan: Mapping[str, Method]) -> Method:
    """A method for each glob, in order, such as the outcome of a search."""
    return chain(*(only(method, glob) for glob, method in plan.items()))

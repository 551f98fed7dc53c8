"""Every method applied once to each model: what many tests look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from kogata.job import Job
from kogata.method import Method
from tests.contract.cases import CASES
from tests.contract.checks import snapshot
from tests.contract.models import job_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A job of its own, what its models were like before the method, and the job that the method returned."""

    given: Job
    model: Mapping[str, object]
    reference: Mapping[str, object]
    after: Job


@cache
def trial(kind: type[Method], name: str) -> Trial:
    """One method on the model called ``name``."""
    job = job_of(name)
    model, reference = snapshot(job.model), snapshot(job.reference)
    return Trial(given=job, model=model, reference=reference, after=CASES[kind].apply(job))


def applied(kind: type[Method], name: str) -> Job:
    """The job after one method on the model called ``name``."""
    return trial(kind, name).after

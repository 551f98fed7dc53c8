"""Each built-in method as a subject of the contract, tried once on each model however many tests look at the result."""

from __future__ import annotations

from functools import cache

from kogata.job import Job
from kogata.methods.base.method import Method
from kogata.testing.methods import Subject
from tests.contract.cases import CASES


@cache
def subject(kind: type[Method]) -> Subject:
    """The method with the settings of its case."""
    return Subject(CASES[kind])


def applied(kind: type[Method], name: str) -> Job:
    """The job after one method on the model called ``name``."""
    return subject(kind).trial(name).after

"""The base class of all methods. A method turns a job into another job, and combining methods gives a method."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from kogata.calibration.stats import Stat
from kogata.errors import UsageError
from kogata.forms import Role
from kogata.job import Job, Kind, Site
from kogata.settings import reference, refusal


@dataclass(frozen=True, kw_only=True)
class About:
    """One row of the table of methods, and what a method does with its default settings.

    ``needs`` are the statistics that it reads for each layer, ``accepts`` the roles of the leaves that it replaces, and
    ``leaves`` the roles of the leaves that it puts in their place. Methods that work on the model as a whole have none of
    these; for them ``data`` says whether they read calibration data. Settings may change all three, so read the properties of
    the same names on a method, not these.
    """

    name: str
    family: str
    summary: str
    paper: str
    layers: tuple[Kind, ...] = tuple(Kind)
    data: bool = False
    labels: bool = False
    training: bool = False
    needs: frozenset[Stat] = frozenset()
    accepts: frozenset[Role] = frozenset()
    leaves: frozenset[Role] = frozenset()


class Method(ABC):
    """Turns a job into another job. Concrete methods are final, frozen, keyword-only dataclasses of their settings.

    The range of a setting is declared with its field, as in ``bits: Annotated[int, Range(ge=1, le=8)]``. The constructor checks
    it and raises UsageError.

    >>> from kogata.methods import RoundToNearest
    >>> RoundToNearest(bits=9)
    Traceback (most recent call last):
    ...
    kogata.errors.UsageError: round-to-nearest: bits is 9; expected 1 to 8.
    """

    ABOUT: ClassVar[About]

    @property
    def needs(self) -> frozenset[Stat]:
        """The statistics that the method reads for each layer; one pass over the calibration data gathers them."""
        return self.ABOUT.needs

    @property
    def accepts(self) -> frozenset[Role]:
        """The roles of the leaves that the method may replace."""
        return self.ABOUT.accepts

    @property
    def leaves(self) -> frozenset[Role]:
        """The roles of the leaves that the method puts in their place."""
        return self.ABOUT.leaves

    def __post_init__(self) -> None:
        """Raises UsageError where a setting is outside its type or range; subclasses add conditions between settings."""
        if reason := refusal(self):
            raise UsageError(f"{self.title()}: {reason}")

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The method with settings that store a float32 weight of ``shape`` in about ``fraction``, in (0, 1), of its bytes.

        The form needs at most that size, plus a few bits for indices of filters. It may be smaller where sizes come in steps.
        None is returned where no setting reaches the fraction, and by methods that do not make single weights smaller.
        ``encode`` may still refuse the weight.

        >>> from kogata.methods import SVD
        >>> SVD.sized((64, 48), 0.25), SVD.sized((64, 48), 0.01)
        (SVD(rank=6), None)

        :param shape: the shape of the weight, ``[outputs, inputs, *kernel]``.
        """
        return None

    @abstractmethod
    def apply(self, job: Job) -> Job:
        """The job after this method; the given job is not changed. Raises NotApplicable when the method can change nothing."""

    def steps(self) -> tuple[Method, ...]:
        """The method as a sequence of steps; a run checkpoints and reports each of them."""
        return (self,)

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """The roles of each site's leaves after this method, without running it; raises NotApplicable on an illegal order."""
        return roles

    def title(self) -> str:
        """The name of the method in tables and messages."""
        return self.ABOUT.name

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values, as a recipe would write them."""
        return {"method": reference(type(self), self.ABOUT.name)} | dataclasses.asdict(cast("Any", self))

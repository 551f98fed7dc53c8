"""Methods: what may be done to a job. Composing methods gives a method."""

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
    """One line of the survey's table of methods, and what a method does with its default settings.

    ``needs`` are the statistics of each layer that it reads, ``accepts`` the leaves that it replaces, and ``leaves`` those that
    it puts in their place. Methods that work on a model as a whole have none of these; ``data`` says that one of them looks at
    calibration data. Settings may change all three: ask a method's own properties of the same names.
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
    """Turns a job into another one. Concrete methods are frozen, keyword-only dataclasses of their settings, and final.

    The range of a setting is declared with its field, ``bits: Annotated[int, Range(ge=1, le=8)]``, and checked here.
    """

    ABOUT: ClassVar[About]

    @property
    def needs(self) -> frozenset[Stat]:
        """The statistics that it reads of each layer, gathered in one pass."""
        return self.ABOUT.needs

    @property
    def accepts(self) -> frozenset[Role]:
        """The leaves that it may replace."""
        return self.ABOUT.accepts

    @property
    def leaves(self) -> frozenset[Role]:
        """The leaves that it puts in their place."""
        return self.ABOUT.leaves

    def __post_init__(self) -> None:
        """Raises UsageError where a setting is outside its type or range; subclasses add conditions between settings."""
        if reason := refusal(self):
            raise UsageError(f"{self.title()}: {reason}")

    @classmethod
    def sized(cls, shape: tuple[int, ...], fraction: float) -> Self | None:
        """The settings under which a float32 weight of ``shape`` is stored in about ``fraction``, in (0, 1), of its bytes.

        The form holds at most that, plus a few bits for indices of filters; it may hold less where sizes come in steps. None
        where no setting meets the fraction, and for methods that do not make single weights smaller. ``encode`` may still
        refuse the weight.

        >>> from kogata.methods import SVD
        >>> SVD.sized((64, 48), 0.25), SVD.sized((64, 48), 0.01)
        (SVD(rank=6), None)

        :param shape: that of the weight, ``[outputs, inputs, *kernel]``.
        """
        return None

    @abstractmethod
    def apply(self, job: Job) -> Job:
        """The job after this method; the given job stays as it is. Raises NotApplicable when nothing can be done."""

    def steps(self) -> tuple[Method, ...]:
        """The method as a sequence of steps, each of which a run can checkpoint and report."""
        return (self,)

    def check(self, roles: Mapping[Site, frozenset[Role]], job: Job) -> Mapping[Site, frozenset[Role]]:
        """The roles of each site's leaves after this method, without running it; raises NotApplicable on an illegal order."""
        return roles

    def title(self) -> str:
        """What the method is called in tables and messages."""
        return self.ABOUT.name

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values: what a recipe would have to say."""
        return {"method": reference(type(self), self.ABOUT.name)} | dataclasses.asdict(cast("Any", self))

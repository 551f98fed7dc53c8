"""Contract tests for methods and forms, usable by other packages.

A package tests its own method like this:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from kogata.methods import RoundToNearest
>>> from kogata.testing import method_checks
>>> checks = method_checks(RoundToNearest(bits=4), models=("conv",))
>>> checks[0].name
'input_job_is_untouched[conv]'
>>> with TemporaryDirectory() as folder:
...     checks[0](Path(folder))

With pytest, ``@pytest.mark.parametrize("check", method_checks(MyMethod()), ids=str)`` makes a test of each check. Checks raise
AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kogata.forms import Form
from kogata.methods.base.method import Method
from kogata.testing import forms, methods
from kogata.testing.models import MODELS

__all__ = ["MODELS", "Check", "form_checks", "method_checks"]


@dataclass(frozen=True)
class Check:
    """One check. Call it with an empty folder that it may write to; it raises AssertionError that says what is wrong."""

    name: str
    run: Callable[[Path], None]

    def __call__(self, folder: Path) -> None:
        """Run the check."""
        self.run(folder)

    def __str__(self) -> str:
        return self.name


def method_checks(
    method: Method, models: Iterable[str] = tuple(MODELS), *, refuses: Mapping[str, str] | None = None
) -> list[Check]:
    """Every check of the contract for a method with its settings, on each of the ``models`` (names of :data:`MODELS`).

    ``refuses`` names the models that the method must refuse, each with a regular expression for the reason. For these the
    refusal and its message are checked instead.

    :raises KeyError: when a name is not in :data:`MODELS`.
    """
    refuses = {} if refuses is None else refuses
    subject, found = methods.Subject(method), list[Check]()
    for model in models:
        MODELS[model]  # raises KeyError for an unknown name before any check runs
        if model in refuses:
            found.append(Check(f"refusal_says_why[{model}]", _refusal(method, model, refuses[model])))
        else:
            found += [Check(f"{name}[{model}]", partial(check, subject, model)) for name, check in methods.CHECKS.items()]
    return found


def form_checks(make: Callable[[], Form]) -> list[Check]:
    """Every check of the contract for a form. ``make`` returns a new, small form with float32 leaves at each call.

    >>> import torch
    >>> from kogata.forms import Codebook
    >>> def make():
    ...     return Codebook.of(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.5, -1.0]))
    >>> [check.name for check in form_checks(make)][0]
    'is_rebuilt_bit_for_bit'
    """
    return [Check(name, partial(check, make)) for name, check in forms.CHECKS.items()]


def _refusal(method: Method, model: str, reason: str) -> Callable[[Path], None]:
    def run(_: Path) -> None:
        methods.refusal_says_why(method, model, reason)

    return run

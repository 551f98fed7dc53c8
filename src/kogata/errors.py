"""Every error that Kogata raises on purpose. Each message says what is wrong, where, what was expected and what to do."""

import difflib
from collections.abc import Iterable


def unknown(found: str, names: Iterable[str]) -> str:
    """The end of a message about a name that is none of ``names``: the name that was probably meant, or all of them.

    >>> unknown("kmeans", ["k-means", "magnitude"])
    "is unknown; did you mean 'k-means'?"
    >>> unknown("fourier", ["k-means", "magnitude"])
    'is none of k-means, magnitude.'
    """
    known = list(names)
    close = difflib.get_close_matches(found, known, 1)
    return f"is unknown; did you mean {close[0]!r}?" if close else f"is none of {', '.join(known)}."


class KogataError(Exception):
    """Base of all errors a user can act on; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(KogataError):
    """A setting, recipe, option or layer name is wrong."""

    exit_code = 2


class NotApplicable(UsageError):  # noqa: N818 - reads as the reason it is
    """A method cannot be applied here: wrong kind of layer, illegal order, or nothing would become smaller."""


class TargetMissed(KogataError):  # noqa: N818 - the run succeeded, its result did not
    """The run finished, but its result misses a requested target."""

    exit_code = 3


class DataError(KogataError):
    """Data, weights, or what a task file returns cannot be used: missing, empty, NaN."""

    exit_code = 4


class FileFormatError(KogataError):
    """A ``.kogata`` file or a checkpoint is damaged, truncated, has a newer schema, or does not fit the model."""

    exit_code = 5


class EngineError(KogataError):
    """An engine cannot export, load or run a model."""

    exit_code = 6

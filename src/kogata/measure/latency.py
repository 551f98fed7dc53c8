"""Latency of one forward pass, for several models in one interleaved run.

The models take turns, so that a drift of the machine's speed affects all of them. Results are the median and quantiles over the
turns, never a mean. A turn is one call, or as many calls as fill :data:`TURN`, because the first call after another model finds
the caches of the processor filled with that model's weights and code, which would distort the latency of a call of some
microseconds.

Every second round of turns runs in reverse order. Other work on the machine may come at the pace of the turns and always hit
the same model; reversed, it hits each model in turn. How much faster one model is than another is therefore the median, over
pairs of rounds forth and back, of the ratio of their times. It is not the ratio of their medians, which need not be of the same
moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from kogata.report.data import Latency

WARM_UP = 10
RUNS = 100
TURN = 2_000_000  # nanoseconds
BUDGET = 20.0  # seconds for all runs together; slow models get fewer runs, but at least MINIMUM
MINIMUM = 10


@final
@dataclass(frozen=True)
class Turns:
    """What was measured: ``times_CR``, the milliseconds of each call in each round.

    >>> turns = Turns(np.array([[4.0, 8.0, 40.0, 4.0], [1.0, 2.0, 10.0, 1.0]]))  # the machine was slow in the third round
    >>> turns.latency(0).p50, turns.speedup(0, 1)
    (6.0, 4.0)
    """

    times_CR: NDArray[np.float64]

    def latency(self, call: int) -> Latency:
        """Median, 90th percentile and minimum of one call's times over the rounds."""
        row = self.times_CR[call]
        return Latency(p50=float(np.median(row)), p90=float(np.quantile(row, 0.9)), minimum=float(row.min()), runs=len(row))

    def speedup(self, base: int, call: int) -> float:
        """How many times as fast ``call`` is as ``base``: the median of the ratios of their times, forth and back together."""
        starts = np.arange(0, self.times_CR.shape[1], 2)
        pairs_CP = np.add.reduceat(self.times_CR, starts, axis=1)
        return float(np.median(pairs_CP[base] / pairs_CP[call]))


def interleaved(calls: Sequence[Callable[[], object]], runs: int = RUNS) -> Turns:
    """Time each call in ``runs`` rounds of turns after a warm-up; in fewer if they take longer than :data:`BUDGET`.

    >>> from kogata.measure.latency import interleaved
    >>> turns = interleaved([lambda: sum(range(1000)), lambda: sum(range(10))], runs=2)
    >>> 0 < turns.latency(1).p50 < turns.latency(0).p50, turns.speedup(0, 1) > 1
    (True, True)
    """
    started = time.perf_counter()
    counts = list[int]()
    for call in calls:
        warm_up = WARM_UP if time.perf_counter() - started < BUDGET / 10 else 1
        counts.append(max(round(TURN / max(min(_timed(call, 1) for _ in range(warm_up)), 1)), 1))
    times = np.zeros((len(calls), runs))
    started, done = time.perf_counter(), 0
    for done in range(1, runs + 1):
        order = range(len(calls)) if done % 2 else reversed(range(len(calls)))
        for index in order:
            times[index, done - 1] = _timed(calls[index], counts[index]) / 1e6
        if done >= MINIMUM and time.perf_counter() - started > BUDGET:
            break
    return Turns(times[:, :done])


def _timed(call: Callable[[], object], count: int) -> float:
    """The mean time of one of ``count`` calls, in nanoseconds."""
    before = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - before) / count

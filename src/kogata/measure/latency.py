"""Latency of one forward pass, for several models in one interleaved run.

The models take turns, so that a drift of the machine's speed affects all of them. Results are the median and quantiles over the
turns, never a mean. A turn is one call, or as many calls as fill :data:`TURN`, because the first call after another model finds
the caches of the processor filled with that model's weights and code, which would distort the latency of a call of some
microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from kogata.report.data import Latency

WARM_UP = 10
RUNS = 100
TURN = 2_000_000  # nanoseconds
BUDGET = 20.0  # seconds for all runs together; slow models get fewer runs, but at least MINIMUM
MINIMUM = 10


def interleaved(calls: Sequence[Callable[[], object]], runs: int = RUNS) -> list[Latency]:
    """The latency of each call in milliseconds, measured in turns after a warm-up.

    >>> from kogata.measure.latency import interleaved
    >>> first, second = interleaved([lambda: sum(range(10)), lambda: sum(range(1000))], runs=2)
    >>> 0 < first.p50 < second.p50
    True
    """
    started = time.perf_counter()
    counts = list[int]()
    for call in calls:
        warm_up = WARM_UP if time.perf_counter() - started < BUDGET / 10 else 1
        counts.append(max(round(TURN / max(min(_timed(call, 1) for _ in range(warm_up)), 1)), 1))
    times = np.zeros((len(calls), runs))
    started, done = time.perf_counter(), 0
    for done in range(1, runs + 1):
        for index, (call, count) in enumerate(zip(calls, counts, strict=True)):
            times[index, done - 1] = _timed(call, count) / 1e6
        if done >= MINIMUM and time.perf_counter() - started > BUDGET:
            break
    return [
        Latency(p50=float(np.median(row)), p90=float(np.quantile(row, 0.9)), minimum=float(row.min()), runs=done)
        for row in times[:, :done]
    ]


def _timed(call: Callable[[], object], count: int) -> float:
    """The mean time of one of ``count`` calls, in nanoseconds."""
    before = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - before) / count

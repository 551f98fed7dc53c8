"""Latency: how long one forward pass takes, for two models in one interleaved run.

The two alternate call by call, so that a machine whose speed drifts slows both; median and spread, never a mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from kogata.report.data import Latency

WARM_UP = 10
RUNS = 200
BUDGET = 20.0  # seconds for all runs together; slow models get fewer, but at least MINIMUM
MINIMUM = 10


def interleaved(calls: Sequence[Callable[[], object]], runs: int = RUNS) -> list[Latency]:
    """The latency of each call, measured in turn after a warm-up."""
    started = time.perf_counter()
    for call in calls:
        for _ in range(WARM_UP if time.perf_counter() - started < BUDGET / 10 else 1):
            call()
    times = np.zeros((len(calls), runs))
    started, done = time.perf_counter(), 0
    for done in range(1, runs + 1):
        for index, call in enumerate(calls):
            before = time.perf_counter_ns()
            call()
            times[index, done - 1] = (time.perf_counter_ns() - before) / 1e6
        if done >= MINIMUM and time.perf_counter() - started > BUDGET:
            break
    return [
        Latency(p50=float(np.median(row)), p90=float(np.quantile(row, 0.9)), minimum=float(row.min()), runs=done)
        for row in times[:, :done]
    ]

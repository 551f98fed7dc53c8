"""One budget for all layers, spent where it saves most error.

Every layer l has options, each with a cost c and an error e, and gets one of them:
    min Σ_l e_l   so that   Σ_l c_l ≤ B,
whose convex relaxation the greedy order solves exactly (Fox, "Discrete optimization via marginal analysis", 1966). Options that
are no gain by themselves are joined with the next ones, so that what a step saves for its cost falls from step to step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kogata.errors import NotApplicable

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Option(Generic[Choice]):
    """What a layer may become, what that costs, and the error that it brings."""

    choice: Choice
    cost: float
    error: float

    def gain(self, dearer: Option[Choice]) -> float:
        """The error that ``dearer`` saves for each unit of its additional cost."""
        return (self.error - dearer.error) / (dearer.cost - self.cost)


def hull(options: Iterable[Option[Choice]]) -> list[Option[Choice]]:
    """The lower convex hull, cheapest first: each has less error than all that are cheaper, and gains fall.

    >>> [option.choice for option in hull([Option("a", 1, 9), Option("b", 2, 8), Option("c", 3, 1), Option("d", 4, 2)])]
    ['a', 'c']
    """
    found = list[Option[Choice]]()
    for option in sorted(options, key=lambda option: (option.cost, option.error)):
        if found and option.error >= found[-1].error:
            continue
        while len(found) > 1 and found[-2].gain(found[-1]) <= found[-1].gain(option):
            found.pop()
        found.append(option)
    return found


def allocated(layers: Sequence[Sequence[Option[Choice]]], budget: float) -> list[Option[Choice]]:
    """One option of each layer's hull: from the cheapest on, always the step of largest gain that the budget has room for.

    Raises NotApplicable when the cheapest ones cost more than the budget.
    """
    at = [0] * len(layers)
    left = budget - sum(layer[0].cost for layer in layers)
    if left < 0:
        raise NotApplicable(f"the cheapest options cost {budget - left:.0f} together, the budget is {budget:.0f}")
    steps = [(-layer[0].gain(layer[1]), number) for number, layer in enumerate(layers) if len(layer) > 1]
    heapq.heapify(steps)
    while steps:
        _, number = heapq.heappop(steps)
        layer, k = layers[number], at[number]
        cost = layer[k + 1].cost - layer[k].cost
        if cost > left:
            continue
        at[number], left = k + 1, left - cost
        if k + 2 < len(layer):
            heapq.heappush(steps, (-layer[k + 1].gain(layer[k + 2]), number))
    return [layer[k] for layer, k in zip(layers, at, strict=True)]

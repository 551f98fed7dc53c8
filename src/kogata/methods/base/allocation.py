"""Spend one budget over all layers so that the sum of their errors is small.

Every layer l has several options, each with a cost c and an error e. One option is chosen for each layer:
    min Σ_l e_l   so that   Σ_l c_l ≤ B,
Greedy selection solves the convex relaxation of this problem exactly (Fox, "Discrete optimization via marginal analysis",
1966). Only the options on the lower convex hull of (cost, error) are considered, so the error saved per unit of cost falls from
each option of a layer to the next.
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
    """One option of a layer: the choice itself, its cost, and the error that it causes."""

    choice: Choice
    cost: float
    error: float

    def gain(self, dearer: Option[Choice]) -> float:
        """The error that ``dearer`` saves for each unit of its additional cost."""
        return (self.error - dearer.error) / (dearer.cost - self.cost)


def hull(options: Iterable[Option[Choice]]) -> list[Option[Choice]]:
    """The options on the lower convex hull of (cost, error), cheapest first: errors fall, and so do the gains.

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
    """One option from the hull of each layer, chosen greedily within ``budget``.

    Every layer starts at its cheapest option. The step with the largest gain that still fits the budget is taken until none
    fits. Raises NotApplicable when the cheapest options together cost more than the budget.

    >>> layers = [hull([Option("a", 1, 9), Option("b", 3, 1)]), hull([Option("c", 1, 2), Option("d", 3, 1)])]
    >>> [option.choice for option in allocated(layers, budget=4)]
    ['b', 'c']
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

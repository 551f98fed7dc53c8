"""The hull and the greedy order against every combination of a few options."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from kogata.errors import NotApplicable
from kogata.methods.base.allocation import Option, allocated, hull


def drawn(count: int, seed: int) -> list[Option[int]]:
    """Options whose errors rise and fall, and whose costs may be the same."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 12, (count,), generator=generator).tolist()
    errors = torch.randn(count, generator=generator, dtype=torch.float64).tolist()
    return [Option(n, cost, error) for n, (cost, error) in enumerate(zip(costs, errors, strict=True))]


@pytest.mark.parametrize("seed", range(20))
def test_no_option_lies_below_the_hull(seed: int) -> None:
    options = drawn(15, seed)
    found = hull(options)
    assert found[0].cost == min(option.cost for option in options)
    assert found[-1].error == min(option.error for option in options)
    slopes = [a.gain(b) for a, b in pairwise(found)]
    assert slopes == sorted(slopes, reverse=True)
    assert all(slope > 0 for slope in slopes)
    for option in options:
        for a, b in pairwise(found):
            if a.cost <= option.cost <= b.cost:
                assert option.error >= a.error - a.gain(b) * (option.cost - a.cost) - 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_after_any_number_of_steps_no_combination_of_that_cost_has_less_error(seed: int) -> None:
    layers = [drawn(6, 100 * seed + n) for n in range(3)]
    hulls = [hull(layer) for layer in layers]
    combinations = [(sum(o.cost for o in chosen), sum(o.error for o in chosen)) for chosen in product(*layers)]
    steps = sorted((-a.gain(b), b.cost - a.cost) for layer in hulls for a, b in pairwise(layer))
    for count in range(len(steps) + 1):
        budget = sum(layer[0].cost for layer in hulls) + sum(cost for _, cost in steps[:count])
        found = allocated(hulls, budget)
        assert sum(option.cost for option in found) == budget
        best = min(error for cost, error in combinations if cost <= budget)
        assert sum(option.error for option in found) == pytest.approx(best)


def test_what_is_left_goes_to_smaller_steps() -> None:
    dear, cheap = [Option("a", 0, 10), Option("b", 6, 0)], [Option("c", 0, 1), Option("d", 2, 0)]
    assert [option.choice for option in allocated([dear, cheap], 3)] == ["a", "d"]


def test_a_budget_below_the_cheapest_options_is_refused() -> None:
    with pytest.raises(NotApplicable, match="cost 7 together, the budget is 6"):
        allocated([[Option("a", 3, 1.0)], [Option("b", 4, 1.0)]], 6)

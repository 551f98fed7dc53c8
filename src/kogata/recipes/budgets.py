"""Recipes whose quantizer works towards a goal of the whole file, with another goal."""

from __future__ import annotations

import dataclasses

from kogata.errors import UsageError
from kogata.methods import RateOBS
from kogata.methods.base.compose import Only, chain
from kogata.methods.base.method import Method
from kogata.recipes import targets
from kogata.recipes.recipe import Recipe, open_recipe


def budget(size: int | str) -> Recipe:
    """The recipe ``budget`` for a file of ``size``: bytes, text such as "2.3MB", or a share of the dense file such as "1/20".

    >>> budget("2.3MB").resolved()["steps"][-1]["bytes"]
    '2.3MB'
    """
    return with_goal(open_recipe("budget"), RateOBS(bytes=size))


def with_goal(recipe: Recipe, goal: RateOBS) -> Recipe:
    """A recipe whose rate-obs step has the slope, bytes or drop of ``goal``, and whose targets ask for the same.

    Raises UsageError when not exactly one step of the recipe is rate-obs.
    """
    steps = [_with_goal(step, goal) for step in recipe.method.steps()]
    if sum(changed for _, changed in steps) != 1:
        raise UsageError(f"recipe {recipe.name}: expected one step rate-obs, whose goal could be set; or leave out the recipe.")
    wanted = {target.goal: target.text for target in recipe.targets if target.goal not in ("size", "drop")}
    if goal.bytes is not None:
        wanted["size"] = f"{goal.bytes}B" if isinstance(goal.bytes, int) else goal.bytes
    if goal.drop is not None:
        wanted["drop"] = goal.drop if isinstance(goal.drop, str) else f"{goal.drop:g}pt"
    return dataclasses.replace(recipe, method=chain(*(step for step, _ in steps)), targets=targets.parse(wanted))


def _with_goal(step: Method, goal: RateOBS) -> tuple[Method, bool]:
    """The step with the goal, and whether it is a step that has one."""
    if isinstance(step, Only):
        inner, changed = _with_goal(step.method, goal)
        return dataclasses.replace(step, method=inner), changed
    if isinstance(step, RateOBS):
        return dataclasses.replace(step, slope=goal.slope, bytes=goal.bytes, drop=goal.drop), True
    return step, False

"""``sized``: settings that spend a given part of a weight's bytes, and never more."""

from __future__ import annotations

import math

import pytest
import torch

from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable
from kogata.job import Kind, Role, Site
from kogata.methods import METHODS, AdaRound
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.methods.kernels.sizes import SLACK
from kogata.search.candidates import STRUCTURES, YARDSTICKS

SIZED = [kind for kind in METHODS if "sized" in vars(kind)]
SHAPES = [(64, 48), (10, 200), (33, 7), (128, 24), (16, 8, 3, 3), (27, 12, 5, 5), (12, 16, 1, 1), (24, 1, 3, 3), (18, 9, 7)]
FRACTIONS = [0.03, 0.06, 0.1, 0.25, 0.4, 0.55, 0.9]


def stored(method: WeightMethod, shape: tuple[int, ...]) -> float:
    """Bits of the form; raises NotApplicable where the method refuses the weight."""
    generator = torch.Generator().manual_seed(0)
    weight, columns = torch.randn(shape, generator=generator), math.prod(shape[1:])
    kind = Kind.LINEAR if len(shape) == 2 else Kind.CONV
    if kind not in method.ABOUT.layers:
        raise NotApplicable("another kind of layer")
    stats = Stats(
        square_GI=torch.ones(1, columns), gram_GII=torch.eye(columns)[None], fisher=torch.rand(shape, generator=generator) + 0.1
    )
    return method.encode(weight, Site("a", "weight", shape, kind, Role.MATRIX), stats).stored_bits()


def test_the_search_measures_methods_with_a_size() -> None:
    assert {*STRUCTURES, *YARDSTICKS} <= set(SIZED)


@pytest.mark.parametrize("kind", SIZED)
def test_a_form_fits_the_size_that_it_was_made_for(kind: type[Method]) -> None:
    fitted = 0
    for shape in SHAPES:
        for fraction in FRACTIONS:
            method = kind.sized(shape, fraction)
            if method is None:
                continue
            assert isinstance(method, kind)
            assert isinstance(method, WeightMethod)
            if isinstance(method, AdaRound):
                method = AdaRound(bits=method.bits, iterations=1)
            try:
                bits = stored(method, shape)
            except NotApplicable:
                continue
            fitted += 1
            assert bits <= SLACK * fraction * 32 * math.prod(shape), (shape, fraction, method)
    assert fitted > 0


@pytest.mark.parametrize("kind", SIZED)
def test_a_larger_size_is_spent(kind: type[Method]) -> None:
    """What fits a quarter fits a half."""
    for shape in ((64, 48), (32, 16, 3, 3)):
        if kind.sized(shape, 0.25) is not None:
            assert kind.sized(shape, 0.5) is not None


def test_methods_that_change_no_single_weight_have_no_size() -> None:
    assert all(kind.sized((64, 48), 0.25) is None for kind in METHODS if kind not in SIZED)

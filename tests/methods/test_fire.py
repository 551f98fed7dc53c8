"""Fire blocks against least squares on the inputs themselves, blocks that are recovered, and the dense layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms import Product
from kogata.forms.product import SQUEEZED
from kogata.forms.stacked import Stacked
from kogata.methods.filters import fire
from kogata.methods.filters.fire import Fire
from kogata.testing.comparisons import assert_near
from tests.methods.compact_blocks import (
    LAYERS,
    SITE,
    assert_damage_is_refused,
    assert_file_and_engine,
    assert_lowers,
    assert_refuses,
    coloured,
    output_error,
    rows_of,
    stats_of,
)


def block(outputs: int, inputs: int, width: int) -> Tensor:
    """A weight that is a fire block, half of whose filters have one place."""
    expand = torch.randn(outputs, width, 3, 3)
    expand[1::2] *= torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0))
    return torch.einsum("osyx,si->oiyx", expand, torch.randn(width, inputs))


@pytest.mark.parametrize("stats", [Stats(), stats_of(coloured(6, 8))], ids=["weights", "inputs"])
def test_a_fire_block_is_recovered(stats: Stats) -> None:
    weight = block(16, 8, 3)
    form = Fire(squeeze=3).encode(weight, SITE, stats)
    assert_near(form.dense(), weight, 1e-3 if stats.gram_GII is not None else 1e-5)
    assert form.kept() == 3 * 8 + 8 * 3 * 9 + 8 * 3


def test_the_filters_are_least_squares_behind_the_squeeze() -> None:
    images, weight = coloured(4, 4), torch.randn(6, 4, 3, 3)
    form = Fire(squeeze=2).encode(weight, SITE, stats_of(images))
    assert isinstance(form, Product)
    expand, squeeze_SI = form.parts()["factors.0"], form.parts()["factors.1"].dense().double()
    assert isinstance(expand, Stacked)
    rows_NI = rows_of(images)
    wanted = rows_NI @ weight.double().flatten(1).T
    between_NSK = torch.einsum("nik,si->nsk", rows_NI.unflatten(1, (4, 9)), squeeze_SI).detach()
    for member, features in ((0, between_NSK[:, :, 4]), (1, between_NSK.flatten(1))):
        solution = torch.linalg.lstsq(features, wanted[:, expand.member == member]).solution.T
        assert_near(expand.filters[member].dense().flatten(1).double(), solution, 1e-3)  # type: ignore[operator]


def test_the_squeeze_is_nearly_least_squares_before_the_filters() -> None:
    """With the filters fixed, the outputs are linear in the squeeze: lstsq on all its entries at once."""
    images, weight = coloured(4, 4), torch.randn(6, 4, 3, 3)
    rows_NIK = rows_of(images).unflatten(1, (4, 9))
    gram = torch.einsum("nik,njl->ikjl", rows_NIK, rows_NIK) / len(rows_NIK)
    filters_OSK = torch.randn(6, 2, 9).double()
    wanted_OIK = torch.einsum("oik,ikjl->ojl", weight.double().flatten(2), gram)
    found = fire.squeezed(wanted_OIK, gram, filters_OSK, torch.zeros(2, 4).double())
    features = torch.einsum("osk,nik->nosi", filters_OSK, rows_NIK).flatten(2).flatten(0, 1)
    wanted = torch.einsum("nik,oik->no", rows_NIK, weight.double().flatten(2)).flatten()
    exact = torch.linalg.lstsq(features, wanted[:, None]).solution.reshape(2, 4)
    assert_near(found, exact, 1e-6)  # eight unknowns, twelve steps


def test_turns_never_raise_the_error_and_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, errors = coloured(6, 8), torch.randn(16, 8, 3, 3), list[float]()
    for sweeps in (0, 1, 3, 6):
        monkeypatch.setattr(fire, "SWEEPS", sweeps)
        form = Fire(squeeze=3).encode(weight, SITE, stats_of(images))
        errors.append(output_error(form, weight, rows_of(images)))
    assert errors[0] > errors[1] > errors[2] > errors[3]


@pytest.mark.parametrize("name", ["squeeze", "share"])
def test_error_falls_with_width(name: str) -> None:
    (images, others), weight = coloured(60, 8).split(30), torch.randn(16, 8, 3, 3)
    cases = (1, 2, 4, 6) if name == "squeeze" else (0.1, 0.3, 0.6, 0.9)
    for rows_NI in (rows_of(images), rows_of(others)):
        errors = [
            output_error(Fire(**{"squeeze": 4} | {name: case}).encode(weight, SITE, stats_of(images)), weight, rows_NI)  # type: ignore[arg-type]
            for case in cases
        ]
        assert errors == sorted(errors, reverse=True)


def test_inputs_matter() -> None:
    """The fit to the inputs has a smaller error on other inputs of the same kind than the fit to the weight."""
    (images, others), weight = coloured(60, 8).split(30), torch.randn(16, 8, 3, 3)
    aware, blind = (Fire(squeeze=3).encode(weight, SITE, stats) for stats in (stats_of(images), Stats()))
    held_out = rows_of(others)
    assert output_error(aware, weight, held_out) < 0.8 * output_error(blind, weight, held_out)


def test_lines() -> None:
    weight = torch.randn(16, 8, 5)
    form = Fire(squeeze=0.5).encode(weight, SITE, Stats())
    assert isinstance(form, Product)
    assert form.equation == SQUEEZED[1]
    assert form.parts()["factors.1"].shape == (4, 8)


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS.keys())
def test_lowered_equals_dense(settings: dict[str, Any]) -> None:
    cheaper = assert_lowers(Fire(squeeze=3), settings)
    layers = [(m.in_channels, m.out_channels, m.kernel_size) for m in cheaper.modules() if isinstance(m, nn.Conv2d)]
    assert layers == [(8, 3, (1, 1)), (3, 16, (1, 1)), (3, 16, (3, 3))]


def test_file_and_engine(tmp_path: Path) -> None:
    assert_file_and_engine(Fire(squeeze=4, share=0.25), tmp_path, {"stride": 2, "padding": 1}, 3)


def test_damage_is_refused() -> None:
    form = Fire(squeeze=3).encode(torch.randn(16, 8, 3, 3), SITE, Stats())
    assert_damage_is_refused(form, {"shape": [16, 8, 3, 5]}, "expected")
    assert_damage_is_refused(form, {"equation": "osyx,is->oiyx"}, "do not fit")


def test_refusals_say_why() -> None:
    assert_refuses(
        Fire(squeeze=4),
        ((16, 8, 1, 1), "kernel of one position"),
        ((16, 8), "1-d and 2-d convolutions"),
        ((16, 1, 3, 3), "reads a single channel"),
        ((16, 8, 4, 4), "no central position"),
        ((1, 8, 3, 3), "single filter"),
        ((4, 4, 3, 1), "no fewer than the 48"),
    )


@pytest.mark.parametrize(
    "settings", [{"squeeze": 0}, {"squeeze": 1.5}, {"squeeze": 2, "share": 1.0}, {"squeeze": 2, "share": 0}]
)
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="fire"):
        Fire(**settings)

"""Depthwise separable blocks against the spectra of single channels, least squares on the inputs, and the dense layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogata.calibration.stats import Stats
from kogata.engines import Costs
from kogata.errors import UsageError
from kogata.methods.filters import depthwise_separable
from kogata.methods.filters.depthwise_separable import DepthwiseSeparable
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


def block(outputs: int, inputs: int, count: int) -> Tensor:
    return torch.einsum("oim,imhw->oihw", torch.randn(outputs, inputs, count), torch.randn(inputs, count, 3, 3))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stats", [Stats(), stats_of(coloured(6, 8))], ids=["weights", "inputs"])
def test_a_depthwise_separable_layer_is_recovered(stats: Stats, count: int) -> None:
    weight = block(16, 8, count)
    form = DepthwiseSeparable(multiplier=count).encode(weight, SITE, stats)
    assert_near(form.dense(), weight, 1e-4)
    assert form.kept() == count * 8 * (16 + 9)


def test_without_inputs_the_error_is_the_tail_of_each_channel() -> None:
    weight = torch.randn(16, 8, 3, 3)
    for count in (1, 3):
        form = DepthwiseSeparable(multiplier=count).encode(weight, SITE, Stats())
        tails = sum(float(torch.linalg.svdvals(weight[:, i].flatten(1))[count:].square().sum()) for i in range(8))
        assert float((form.dense().detach() - weight).square().sum()) == pytest.approx(tails, rel=1e-4)


def test_the_mixing_is_least_squares_behind_the_filters() -> None:
    images, weight = coloured(4, 4), torch.randn(6, 4, 3, 3)
    form = DepthwiseSeparable(multiplier=2).encode(weight, SITE, stats_of(images))
    mix_OIM, filters_IMK = (part.dense().detach().double() for part in form.parts().values())
    rows_NI = rows_of(images)
    wanted = rows_NI @ weight.double().flatten(1).T
    features = torch.einsum("nik,imk->nim", rows_NI.unflatten(1, (4, 9)), filters_IMK).flatten(1)
    assert_near(mix_OIM.flatten(1), torch.linalg.lstsq(features, wanted).solution.T, 1e-3)


def test_one_channel_is_a_truncated_svd_of_its_outputs() -> None:
    """Given the others, the best filters of a channel are found by SVD on the patches themselves."""
    rows_NK = rows_of(coloured(4, 1))
    gram_KK = rows_NK.T @ rows_NK
    target_OK = torch.randn(6, 9).double()
    part_OK, rows_MK = depthwise_separable.truncated(target_OK, torch.linalg.cholesky(gram_KK), 2)
    spectrum = torch.linalg.svdvals(rows_NK @ target_OK.T)
    error = float((rows_NK @ (target_OK - part_OK).T).square().sum())
    assert error == pytest.approx(float(spectrum[2:].square().sum()), rel=1e-6)
    assert torch.linalg.matrix_rank(torch.cat([part_OK, rows_MK])) == 2


def test_turns_never_raise_the_error_and_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight, errors = coloured(6, 8), torch.randn(16, 8, 3, 3), list[float]()
    for sweeps in (depthwise_separable.SWEEPS, 0, 1, 2, 4):
        monkeypatch.setattr(depthwise_separable, "SWEEPS", sweeps)
        form = DepthwiseSeparable(multiplier=1).encode(weight, SITE, stats_of(images))
        errors.append(output_error(form, weight, rows_of(images)))
    own, *errors = errors
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert own < errors[1], "the method itself makes several turns"


def test_error_falls_with_width() -> None:
    (images, others), weight = coloured(60, 8).split(30), torch.randn(32, 8, 3, 3)
    for rows_NI in (rows_of(images), rows_of(others)):
        errors = [
            output_error(DepthwiseSeparable(multiplier=m).encode(weight, SITE, stats_of(images)), weight, rows_NI)
            for m in (1, 2, 4, 6)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("count", [1, 2])
def test_lowered_equals_dense(by_products: Costs, settings: dict[str, Any], count: int) -> None:
    cheaper = assert_lowers(DepthwiseSeparable(multiplier=count), settings, by_products)
    layers = [(m.in_channels, m.out_channels, m.kernel_size, m.groups) for m in cheaper.modules() if isinstance(m, nn.Conv2d)]
    assert layers == [(8, 8 * count, (3, 3), 8), (8 * count, 32, (1, 1), 1)]


def test_file_and_engine(by_products: Costs, tmp_path: Path) -> None:
    assert_file_and_engine(DepthwiseSeparable(multiplier=2), tmp_path, {"stride": 2, "padding": 1}, 3, by_products)


def test_damage_is_refused() -> None:
    form = DepthwiseSeparable(multiplier=2).encode(torch.randn(16, 8, 3, 3), SITE, Stats())
    assert_damage_is_refused(form, {"shape": [16, 8, 3, 5]}, "expected")
    assert_damage_is_refused(form, {"equation": "omi,imk->oik"}, "do not fit")


def test_refusals_say_why() -> None:
    assert_refuses(
        DepthwiseSeparable(multiplier=2),
        ((16, 8, 1, 1), "kernel of one position"),
        ((16, 8), "1-d and 2-d convolutions"),
        ((16, 1, 3, 3), "reads a single channel"),
        ((2, 8, 3, 3), "no fewer than the 144"),
    )


def test_multiplier_is_checked() -> None:
    with pytest.raises(UsageError, match="depthwise-separable: multiplier is 0"):
        DepthwiseSeparable(multiplier=0)

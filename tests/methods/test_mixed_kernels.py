"""1×1 and 3×3 filters against least squares on the inputs themselves, every choice of filters, and the dense layer."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kogata.calibration.stats import Stats
from kogata.errors import UsageError
from kogata.forms.stacked import Stacked
from kogata.methods.filters.mixed_kernels import MixedKernels
from kogata.testing.comparisons import assert_near
from tests.methods.compact_blocks import (
    LAYERS,
    SITE,
    assert_file_and_engine,
    assert_lowers,
    assert_refuses,
    coloured,
    output_error,
    rows_of,
    stats_of,
)

CENTRE = 4


def test_equals_least_squares_and_no_other_choice_is_better() -> None:
    images, weight = coloured(4, 3), torch.randn(5, 3, 3, 3)
    rows_NI = rows_of(images)
    wanted = rows_NI @ weight.double().flatten(1).T
    centres = rows_NI.unflatten(1, (3, 9))[:, :, CENTRE]
    small_OI = torch.linalg.lstsq(centres, wanted).solution.T
    missed_O = (wanted - centres @ small_OI.T).square().sum(0)
    least = min(float(missed_O[list(chosen)].sum()) for chosen in combinations(range(5), 3))
    form = MixedKernels(share=0.4).encode(weight, SITE, stats_of(images))
    assert isinstance(form, Stacked)
    assert output_error(form, weight, rows_NI) == pytest.approx(least / float(wanted.square().sum()), rel=1e-4)
    kept = form.member == 1
    assert int(kept.sum()) == 2
    assert torch.equal(form.dense()[kept], weight[kept])
    assert_near(form.dense()[~kept, :, 1, 1], small_OI[~kept].float(), 2e-3)
    assert form.dense()[~kept].count_nonzero() == 3 * 3  # zeros about the centre


def test_without_inputs_the_centre_stays() -> None:
    weight = torch.randn(8, 4, 3, 5)
    form = MixedKernels(share=0.25).encode(weight, SITE, Stats())
    assert isinstance(form, Stacked)
    small = form.member == 0
    assert_near(form.dense()[small, :, 1, 2], weight[small, :, 1, 2], 1e-6)
    around = weight.square().sum((1, 2, 3)) - weight[:, :, 1, 2].square().sum(1)
    assert set(around.argsort()[:6].tolist()) == set(small.nonzero().flatten().tolist())


def test_a_layer_of_both_kernels_is_recovered() -> None:
    weight = torch.randn(16, 8, 3, 3)
    weight[::2] *= torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0))
    form = MixedKernels(share=0.5).encode(weight, SITE, stats_of(coloured(6, 8)))
    assert_near(form.dense(), weight, 1e-5)
    assert form.kept() == 8 * 8 * 9 + 8 * 8


def test_error_falls_with_the_share() -> None:
    (images, others), weight = coloured(60, 8).split(30), torch.randn(16, 8, 3, 3)
    for rows_NI in (rows_of(images), rows_of(others)):
        errors = [
            output_error(MixedKernels(share=share).encode(weight, SITE, stats_of(images)), weight, rows_NI)
            for share in (0.1, 0.3, 0.6, 0.9)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS.keys())
def test_lowered_equals_dense(settings: dict[str, Any]) -> None:
    cheaper = assert_lowers(MixedKernels(share=0.3), settings)
    kernels = sorted(m.kernel_size for m in cheaper.modules() if isinstance(m, nn.Conv2d))
    assert kernels == [(1, 1), (3, 3)]


def test_file_and_engine(tmp_path: Path) -> None:
    assert_file_and_engine(MixedKernels(share=0.25), tmp_path, {"stride": 2, "padding": 1}, 2)


def test_refusals_say_why() -> None:
    assert_refuses(
        MixedKernels(share=0.5),
        ((16, 8, 1, 1), "kernel of one position"),
        ((16, 8), "1-d and 2-d convolutions"),
        ((16, 1, 3, 3), "reads a single channel"),
        ((16, 8, 2, 2), "no central position"),
        ((1, 8, 3, 3), "single filter"),
    )


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, float("nan")])
def test_share_is_checked(share: float) -> None:
    with pytest.raises(UsageError, match="mixed-kernels: share"):
        MixedKernels(share=share)

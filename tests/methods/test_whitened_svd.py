"""Whitened SVD against the singular values of the outputs themselves: what no matrix of the rank can beat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Form, Role
from kogata.job import Job, Kind, Site
from kogata.methods import SVD
from kogata.methods.base.compose import only
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.network.batch import evaluating
from kogata.network.sites import form_at, sites_of
from kogata.testing.comparisons import assert_near

SITE = Site("layer", "weight", (20, 30), Kind.LINEAR, Role.MATRIX)


def encoded(weight: Tensor, rank: float, rows_NI: Tensor) -> Form:
    return WhitenedSVD(rank=rank).encode(weight, SITE, Stats(gram_GII=(rows_NI.T @ rows_NI / len(rows_NI))[None]))


def inputs(rows: int, columns: int) -> Tensor:
    """Columns of unequal scale, correlated with each other."""
    return torch.randn(rows, columns) * torch.logspace(-1, 1, columns) @ torch.randn(columns, columns) / columns**0.5


@pytest.mark.parametrize("shape", [(20, 30), (50, 30), (30, 30)])
@pytest.mark.parametrize("rank", [1, 4, 10])
def test_output_error_is_the_tail_of_the_outputs_spectrum(shape: tuple[int, int], rank: int) -> None:
    weight, x_NI = torch.randn(shape), inputs(200, 30)
    spectrum = np.linalg.svd((x_NI @ weight.T).double().numpy(), compute_uv=False)
    error = float((x_NI @ (encoded(weight, rank, x_NI).dense().detach() - weight).T).double().square().sum())
    assert error == pytest.approx(float((spectrum[rank:] ** 2).sum()), rel=1e-4)


def test_the_tail_is_that_of_the_weight_times_the_cholesky_factor() -> None:
    weight, x_NI = torch.randn(20, 30), inputs(200, 30)
    gram = (x_NI.T @ x_NI / 200).double()
    spectrum = np.linalg.svd(weight.double().numpy() @ np.linalg.cholesky(gram.numpy()), compute_uv=False)
    change = (encoded(weight, 5, x_NI).dense().detach() - weight).double()
    assert float((change @ gram * change).sum()) == pytest.approx(float((spectrum[5:] ** 2).sum()), rel=1e-4)


def test_white_inputs_give_the_plain_svd() -> None:
    weight = torch.randn(20, 30)
    found = WhitenedSVD(rank=5).encode(weight, SITE, Stats(gram_GII=3 * torch.eye(30)[None]))
    assert_near(found.dense(), SVD(rank=5).encode(weight, SITE, Stats()).dense(), 1e-4)


@pytest.mark.parametrize("shape", [(20, 30), (50, 30)])
def test_inputs_of_few_directions_are_kept_exactly_and_the_weight_decides_the_rest(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    x_NI = torch.randn(100, 3) @ torch.randn(3, 30)
    form = encoded(weight, 8, x_NI)
    assert_near(x_NI @ form.dense().T, x_NI @ weight.T, 1e-4)
    left, right = (part.dense().detach() for part in form.parts().values())
    outputs_OO = torch.linalg.qr((x_NI @ weight.T).T)[0][:, :3]
    rest = weight - outputs_OO @ (outputs_OO.T @ weight)
    tail = torch.linalg.svdvals(rest)[5:].square().sum()
    assert float((left @ right - weight).square().sum()) == pytest.approx(float(tail), rel=1e-2)


def test_no_inputs_at_all_give_the_plain_svd() -> None:
    weight = torch.randn(20, 30)
    found = WhitenedSVD(rank=5).encode(weight, SITE, Stats(gram_GII=torch.zeros(1, 30, 30)))
    assert_near(found.dense(), SVD(rank=5).encode(weight, SITE, Stats()).dense(), 1e-4)


def test_factors_are_balanced() -> None:
    left, right = encoded(torch.randn(20, 30), 5, inputs(200, 30)).parts().values()
    np.testing.assert_allclose(left.dense().detach().norm(dim=0), right.dense().detach().norm(dim=1), rtol=1e-4)


def changed(job: Job, rows: Tensor) -> float:
    with evaluating(job.model):
        return float((job.model(rows) - job.reference(rows)).norm())


@pytest.mark.parametrize("batches", [1, 3])
def test_convolution_on_its_own_patches(batches: int) -> None:
    layer = nn.Conv2d(4, 12, 3, stride=2, padding=1, padding_mode="reflect")
    images = torch.randn(6, 4, 9, 9).cumsum(2)
    job = WhitenedSVD(rank=3).apply(prepare(nn.Sequential(layer), Task(calibration=list(images.chunk(batches)))))
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    patches_NI = nn.functional.unfold(padded, 3, stride=2).transpose(1, 2).flatten(0, 1)
    spectrum = np.linalg.svd((patches_NI @ layer.weight.detach().flatten(1).T).double().numpy(), compute_uv=False)
    assert changed(job, images) ** 2 == pytest.approx(float((spectrum[3:] ** 2).sum()), rel=1e-3)


def test_attention_projections() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    rows = torch.randn(8, 5, 4) @ torch.randn(4, 16)  # the joint projection meets four directions alone
    job = prepare(Attention(), Task(calibration=[rows]))
    joint = only(WhitenedSVD(rank=4), "attention.in_proj_weight").apply(job)
    assert changed(joint, rows) < 1e-4
    both = WhitenedSVD(rank=4).apply(job)
    assert {row.site for row in both.ledger if not row.note} == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert changed(both, rows) <= changed(SVD(rank=4).apply(job), rows)


def test_held_out_outputs_change_less_than_with_the_plain_svd() -> None:
    mixing = torch.randn(64, 64) * torch.logspace(-1, 1, 64)[:, None]
    seen, unseen = (torch.randn(500, 64) @ mixing for _ in range(2))
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 40))
    job = prepare(model, Task(calibration=[seen]))
    whitened, plain = (changed(method.apply(job), unseen) for method in (WhitenedSVD(rank=8), SVD(rank=8)))
    assert whitened < 0.9 * plain


def test_the_second_layer_sees_what_the_first_has_become() -> None:
    """Its outputs on the inputs it gets are at their optimum: a spectrum of the compressed prefix, not of the original."""
    rows = torch.randn(300, 24)
    job = prepare(nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 18)), Task(calibration=[rows]))
    after = WhitenedSVD(rank=3).apply(job).model
    with evaluating(after):
        x_NI = after[1](after[0](rows))  # type: ignore[index]
    weight, found = (model.get_submodule("2").weight.detach() for model in (job.model, after))  # type: ignore[union-attr]
    spectrum = np.linalg.svd((x_NI @ weight.T).double().numpy(), compute_uv=False)
    assert float((x_NI @ (found - weight).T).square().sum()) == pytest.approx(float((spectrum[3:] ** 2).sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "rows", "reason"),
    [
        (nn.Conv2d(8, 16, 3, groups=2), torch.randn(2, 8, 7, 7), "grouped"),
        (nn.ConvTranspose2d(8, 16, 3, groups=2), torch.randn(2, 8, 5, 5), "grouped"),
        (nn.Embedding(40, 24), torch.randint(40, (3, 4)), "this is embedding"),
    ],
)
def test_layers_without_one_matrix_of_inputs_are_refused(layer: nn.Module, rows: Tensor, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        WhitenedSVD(rank=2).apply(prepare(nn.Sequential(layer), Task(calibration=[rows])))


def test_half_precision_stays() -> None:
    rows = torch.randn(50, 24).half()
    job = WhitenedSVD(rank=4).apply(prepare(nn.Sequential(nn.Linear(24, 20).half()), Task(calibration=[rows])))
    assert job.model[0].weight.dtype == torch.float16  # type: ignore[index, union-attr]
    assert {leaf.values.dtype for _, leaf in form_at(job.model, sites_of(job.model)[1]).leaves()} == {torch.float16}


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match=r"layer\.weight of shape .* NaN"):
        encoded(torch.full((20, 30), float("nan")), 2, torch.randn(40, 30))


def test_no_gain_is_refused() -> None:
    with pytest.raises(NotApplicable, match="rank 12 of 20 holds no fewer"):
        encoded(torch.randn(20, 30), 12, torch.randn(40, 30))


@pytest.mark.parametrize("rank", [0, -1, 1.5, float("nan")])
def test_rank_is_checked(rank: float) -> None:
    with pytest.raises(UsageError, match="whitened-svd: rank"):
        WhitenedSVD(rank=rank)

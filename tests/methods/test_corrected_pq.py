"""Error-corrected product quantization: output errors by multiplying out, and each last choice against all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import NotApplicable, UsageError
from kogata.forms import Role
from kogata.forms.vectors import Vectors
from kogata.job import Kind, Site
from kogata.methods.sharing.corrected_pq import DAMPING, CorrectedPQ
from kogata.methods.sharing.product_quantization import ProductQuantization

SITE = Site("layer", "weight", (0,), Kind.LINEAR, Role.MATRIX)


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs with a few strong directions, and some columns that are always 0."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, columns, generator=random)
    x = torch.randn(rows, 3, generator=random) @ mixing + 0.3 * torch.randn(rows, columns, generator=random)
    x[:, ::5] = 0
    return x


def encode(weight: Tensor, inputs: Tensor, clusters: int = 8, length: int = 4) -> Vectors:
    gram = (inputs.T @ inputs / len(inputs))[None]
    form = CorrectedPQ(clusters=clusters, length=length).encode(weight, SITE, Stats(gram_GII=gram))
    assert isinstance(form, Vectors)
    return form


def output_error(weight: Tensor, form: Vectors, inputs: Tensor) -> float:
    """‖X Wᵀ − X Ŵᵀ‖² by multiplying out."""
    return float((inputs.double() @ (weight - form.dense().detach()).flatten(1).double().T).square().sum())


@pytest.mark.parametrize(("shape", "length"), [((60, 24), 4), ((60, 26), 4), ((60, 3, 3, 3), 5), ((60, 24), 1)])
def test_output_error_is_less_than_that_of_plain_product_quantization(shape: tuple[int, ...], length: int) -> None:
    weight = torch.randn(shape)
    columns = weight[0].numel()
    seen, new = correlated(300, columns), correlated(1300, columns)[300:]
    plain = ProductQuantization(clusters=8, length=length).encode(weight, SITE, Stats())
    assert isinstance(plain, Vectors)
    corrected = encode(weight, seen, 8, length)
    assert corrected.stored_bits() <= plain.stored_bits() * 1.1
    for inputs in (seen, new):
        assert output_error(weight, corrected, inputs) < 0.7 * output_error(weight, plain, inputs)


def test_no_other_code_of_a_row_in_the_last_sub_space_is_better() -> None:
    """The objective, with its damping, for every row and every code it might have had instead."""
    weight, inputs = torch.randn(30, 10), correlated(200, 10)
    form = encode(weight, inputs, 5, 4)
    gram = (inputs.T @ inputs / len(inputs)).double()
    gram += DAMPING * gram.diagonal().mean() * torch.eye(10)
    table = form.table.dense().detach().double()
    for o in range(30):
        rest = (weight[o] - form.dense().detach()[o]).double()
        costs = list[float]()
        for k in range(5):
            trial = rest.clone()
            trial[8:] = weight[o, 8:].double() - table[2, k, :2]
            costs.append(float(trial @ gram @ trial))
        assert costs[int(form.index[o, 2])] <= min(costs) * (1 + 1e-4) + 1e-6


def test_centroids_of_the_last_sub_space_are_least_squares_solutions() -> None:
    """Nudging any of them, in any direction, makes the objective larger."""
    weight, inputs = torch.randn(30, 8), correlated(200, 8)
    form = encode(weight, inputs, 4, 4)
    gram = (inputs.T @ inputs / len(inputs)).double()
    gram += DAMPING * gram.diagonal().mean() * torch.eye(8)
    table = form.table.dense().detach().double().requires_grad_()
    dense = torch.cat([table[0][form.index[:, 0].long()], table[1][form.index[:, 1].long()]], dim=1)
    rest = weight.double() - dense
    error = ((rest @ gram) * rest).sum()
    (gradient,) = torch.autograd.grad(error, table)
    assert float(gradient[1].norm()) < 1e-4 * float(error.detach())


def test_white_inputs_leave_little_to_correct() -> None:
    weight = torch.randn(60, 12)
    plain = ProductQuantization(clusters=8, length=4).encode(weight, SITE, Stats())
    corrected = CorrectedPQ(clusters=8, length=4).encode(weight, SITE, Stats(gram_GII=torch.eye(12)[None]))
    torch.testing.assert_close(corrected.dense(), plain.dense(), atol=1e-4, rtol=1e-4)


def test_inputs_that_are_always_zero() -> None:
    weight = torch.randn(40, 8)
    form = encode(weight, torch.zeros(10, 8))
    assert bool(form.dense().isfinite().all())
    plain = ProductQuantization(clusters=8, length=4).encode(weight, SITE, Stats())
    errors = [float((f.dense().detach() - weight).square().sum()) for f in (form, plain)]
    assert errors[0] <= errors[1] * 1.01


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 48), nn.Linear(48, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_a_whole_model_keeps_its_outputs_better() -> None:
    inputs = correlated(256, 16)
    job = prepare(TwoLayers(), Task(calibration=[inputs]))
    errors = [
        float((method.apply(job).model(inputs) - job.model(inputs)).detach().square().sum())
        for method in (CorrectedPQ(clusters=8, length=4), ProductQuantization(clusters=8, length=4))
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    ("gram", "reason"),
    [(None, "inputs"), (torch.eye(7)[None], "inputs"), (torch.eye(8).expand(2, 8, 8), "grouped")],
)
def test_refused_without_inputs_of_its_own(gram: Tensor | None, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        CorrectedPQ(clusters=4, length=4).encode(torch.randn(20, 8), SITE, Stats(gram_GII=gram))


@pytest.mark.parametrize(("clusters", "length", "what"), [(0, 2, "clusters"), (4, 0, "length")])
def test_settings_are_checked(clusters: int, length: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        CorrectedPQ(clusters=clusters, length=length)

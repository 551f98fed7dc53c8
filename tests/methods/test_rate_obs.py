"""rate-obs against Optimal Brain Quantization by its definition, gradients of single samples, and its budgets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task, Where, compress, only, per_site
from kogata.calibration.gather import gradients_of
from kogata.calibration.prepare import prepare
from kogata.calibration.sensitivity import class_axis, sensitivities
from kogata.calibration.stats import Stat, Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Affine, Masked, Role
from kogata.job import Job, Kind, Site
from kogata.methods import MagnitudePruning, RateOBS
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import pack, save
from kogata.testing.models import job_of

SLOPE = 1e-4


def site(weight: Tensor, kind: Kind = Kind.LINEAR) -> Site:
    return Site("layer", "weight", tuple(weight.shape), kind, Role.MATRIX)


def gram(columns: int, rows: int = 300, groups: int = 1) -> Tensor:
    """Of correlated inputs of unequal size."""
    inputs = torch.randn(groups, rows, columns) @ (torch.randn(columns, columns) * torch.logspace(-1, 0.5, columns))
    return inputs.mT @ inputs / rows


def damped(gram_II: Tensor) -> np.ndarray:
    matrix = gram_II.double().numpy()
    return matrix + 0.01 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def one_at_a_time(weight: np.ndarray, hessian: np.ndarray, step: float) -> np.ndarray:
    """The codes of one row: each weight rounded, removed from the inverse Hessian, and made up for by all that are left."""
    w, inverse, codes = weight.copy(), np.linalg.inv(hessian), np.zeros(len(weight))
    for j in sorted(range(len(weight)), key=lambda j: -hessian[j, j]):
        codes[j] = np.rint(w[j] / step)
        w -= (w[j] - step * codes[j]) / inverse[j, j] * inverse[:, j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j] = inverse[:, j] = 0
    return codes


def cost(hessian: np.ndarray) -> float:
    """The mean over columns of 1 / [H⁻¹]_jj of what is left when j is rounded."""
    order = sorted(range(len(hessian)), key=lambda j: -hessian[j, j])
    left = [order[n:] for n in range(len(order))]
    return float(np.mean([1 / np.linalg.inv(hessian[np.ix_(rest, rest)])[0, 0] for rest in left]))


def encode(method: RateOBS, weight: Tensor, stats: Stats, kind: Kind = Kind.LINEAR) -> Affine:
    form = method.encode(weight, site(weight, kind), stats)
    assert isinstance(form, Affine)
    return form


def codes(form: Affine) -> np.ndarray:
    return (form.code.double() - form.zero.double()).numpy()


def step_of(form: Affine) -> float:
    assert form.scale.shape == (1, 1)
    return float(form.scale.dense().detach())


@pytest.mark.parametrize(("columns", "groups", "slope"), [(12, 1, 1e-2), (150, 1, 1.0), (9, 4, 1e-4)])
def test_codes_are_those_of_exact_updates(columns: int, groups: int, slope: float) -> None:
    weight, gram_GII = torch.randn(groups * 3, columns), gram(columns, 400, groups)
    form = encode(RateOBS(slope=slope, rate=0), weight, Stats(gram_GII=gram_GII, sensitivity=0.5))
    assert len(np.unique(codes(form))) > 3
    for r, row in enumerate(weight.double().numpy()):
        wanted = one_at_a_time(row, damped(gram_GII[r // 3]), step_of(form))
        np.testing.assert_array_equal(codes(form)[r], wanted)


def test_a_price_of_bits_saves_bits_and_in_the_end_leaves_zeros() -> None:
    weight, stats = torch.randn(32, 48), Stats(gram_GII=gram(48), sensitivity=1.0)
    forms = [encode(RateOBS(slope=5, rate=rate), weight, stats) for rate in (0.0, 0.1, 0.5)]
    bits = [form.planes()["code"].entropy_bits() for form in forms]
    assert bits[0] > 1.02 * bits[1] > 1.04 * bits[2] > 0
    assert not codes(encode(RateOBS(slope=5, rate=1e9), weight, stats)).any()


def test_entries_that_a_mask_removes_stay_zero() -> None:
    job = MagnitudePruning(sparsity=0.5).apply(job_of("conv"))
    after = RateOBS(slope=1e-8).apply(job)
    for one, other in zip(sites_of(job.model), sites_of(after.model), strict=True):
        before, form = form_at(job.model, one), form_at(after.model, other)
        if isinstance(before, Masked):
            assert isinstance(form, Masked)
            assert isinstance(form.values, Affine)
            assert torch.equal(form.position, before.position)


class Net(nn.Module):
    """A convolution over several positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().flatten(1))


def net_job(samples: int = 24, **fields: object) -> Job:
    net = Net()
    with torch.no_grad():
        net.out.weight.mul_(4)
    return prepare(net, Task(calibration=list(torch.randn(samples, 2, 4, 4).split(8)), **fields))  # type: ignore[arg-type]


def squared_gradients(job: Job, label: Tensor, n: int, inputs: Tensor) -> dict[str, float]:
    """Of −log p(label) of one sample at one output of each layer: summed over positions, the mean over channels."""
    net, seen = job.reference, dict[str, Tensor]()
    assert isinstance(net, Net)
    seen["conv.weight"] = net.conv(inputs[n : n + 1])
    seen["out.weight"] = net.out(seen["conv.weight"].relu().flatten(1))
    loss = functional.cross_entropy(seen["out.weight"], label.reshape(1))
    found = torch.autograd.grad(loss, list(seen.values()))
    return {name: float(g.double().square().sum()) / g.shape[1] for name, g in zip(seen, found, strict=True)}


def drawn(job: Job) -> tuple[Tensor, Tensor]:
    """All calibration inputs, and the labels that a generator of the job's seed draws for them, batch by batch."""
    generator, labels = torch.Generator().manual_seed(job.seed), list[Tensor]()
    for inputs in job.task.calibration:  # type: ignore[union-attr]
        labels.append(torch.multinomial(job.reference(inputs).detach().softmax(1), 1, generator=generator)[:, 0])
    return torch.cat(list(job.task.calibration)), torch.cat(labels)  # type: ignore[arg-type]


def test_sensitivities_are_squared_gradients_of_single_samples() -> None:
    job = net_job()
    inputs, labels = drawn(job)
    each = [squared_gradients(job, label, n, inputs) for n, label in enumerate(labels)]
    found = sensitivities(job, selected_sites(job))
    for name in ("conv.weight", "out.weight"):
        outputs_O, _ = found[name]
        assert outputs_O is not None
        np.testing.assert_allclose(outputs_O.numpy(), np.mean([one[name] for one in each]), rtol=1e-4)


def test_drawn_labels_stand_for_all_labels() -> None:
    """On average over many samples: the expectation over labels, each with its probability."""
    job = net_job(samples=400)
    inputs, _ = drawn(job)
    chances = job.reference(inputs).detach().softmax(1)
    found = sensitivities(job, selected_sites(job))
    wanted: dict[str, float] = dict.fromkeys(found, 0.0)
    for n in range(0, 400, 2):
        for label in range(3):
            for name, square in squared_gradients(job, torch.tensor(label), n, inputs).items():
                wanted[name] += float(chances[n, label]) * square / 200
    for name, value in wanted.items():
        outputs_O, _ = found[name]
        assert outputs_O is not None
        assert float(outputs_O.mean()) == pytest.approx(value, rel=0.2)


def test_steps_satisfy_the_equation_of_the_slope() -> None:
    job = net_job()
    inputs, labels = drawn(job)
    each = [squared_gradients(job, label, n, inputs) for n, label in enumerate(labels)]
    after = RateOBS(slope=SLOPE).apply(job)
    net = after.model
    assert isinstance(net, Net)
    patches_NI = functional.unfold(inputs, 3, padding=1).mT.flatten(0, 1)
    hidden_NI = net.conv(inputs).detach().relu().flatten(1)  # behind what the convolution has become
    for name, x_NI in (("conv.weight", patches_NI), ("out.weight", hidden_NI)):
        form = form_at(net, next(each for each in sites_of(net) if each.name == name))
        assert isinstance(form, Affine)
        fisher = np.mean([one[name] for one in each])
        wanted = SLOPE / (cost(damped(x_NI.T @ x_NI / len(x_NI))) * fisher)
        assert step_of(form) ** 2 == pytest.approx(wanted, rel=2e-3)  # the step has half precision


def test_the_predicted_loss_is_that_of_small_changes() -> None:
    """Summed over layers it is about the divergence of the outputs, whose second derivative the Fisher information is."""
    job = net_job(samples=400)
    after = RateOBS(slope=1e-5).apply(job)
    inputs = drawn(job)[0]
    dense, ours = (model(inputs).detach().double().log_softmax(1) for model in (job.reference, after.model))
    divergence = float((dense.exp() * (dense - ours)).sum(1).mean())
    predicted = sum(row.increase or 0.0 for row in after.ledger)
    assert predicted == pytest.approx(divergence, rel=0.5)


def test_a_recurrent_weight_is_known_by_the_gradients_of_its_entries() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0][:, -1])

    job = prepare(Words(), Task(calibration=[torch.randn(16, 5, 6)]))
    found = gradients_of(job, {each: frozenset({Stat.SENSITIVITY}) for each in selected_sites(job)})
    assert found["lstm.weight_ih_l0"].outputs_O is None
    inputs, labels = drawn(job)
    loss = functional.cross_entropy(job.reference(inputs), labels, reduction="sum")
    weight = job.reference.get_parameter("lstm.weight_ih_l0")
    square = torch.autograd.grad(loss, weight)[0].double().square().mean() / 16
    assert found["lstm.weight_ih_l0"].entries[""] == pytest.approx(float(square), rel=1e-4)
    after = RateOBS(slope=1e-5).apply(job)
    assert not any(row.note for row in after.ledger)


@pytest.mark.parametrize("share", ["1/4", "1/5", "1/7"])
@pytest.mark.parametrize("name", ["conv", "attention"])
def test_the_file_lands_within_a_percent_below_its_budget(name: str, share: str) -> None:
    job = job_of(name)
    after = RateOBS(bytes=share).apply(job)
    limit = int(dense_bytes(job.reference) / int(share[2:]))
    assert 0.99 * limit <= len(pack(after.model).data) <= limit
    passes = re.search(r"after (\d) pass", after.remarks[-1])
    assert passes is not None
    assert int(passes[1]) <= 3


def test_a_budget_covers_what_else_is_in_the_file() -> None:
    job = job_of("conv")
    extra = 3000
    after = RateOBS(bytes=9000).apply(replace(job, file_bytes=lambda model: len(pack(model).data) + extra))
    assert 0.99 * 9000 <= len(pack(after.model).data) + extra <= 9000


@pytest.mark.parametrize("budget", [400, "99%", "1/100", "1GB"])
def test_a_budget_that_cannot_be_met_is_refused_with_both_figures(budget: int | str) -> None:
    job = job_of("embedding")
    if budget == "99%":
        RateOBS(bytes=budget).apply(job)  # the finest step has fewer bytes
        return
    with pytest.raises(UsageError, match=r"takes [\d,]+ bytes with every code zero, and [\d,]+ as it was"):
        RateOBS(bytes=budget).apply(job)


def test_a_drop_is_measured_and_kept() -> None:
    job = job_of("attention")
    after = RateOBS(drop="0.5pt").apply(job)
    lost, rows = 0.0, 0
    for inputs, _ in job.task.calibration:  # type: ignore[union-attr]
        chances, chosen = job.reference(inputs).detach().softmax(1), after.model(inputs).argmax(1)
        lost += float((chances.amax(1) - chances[torch.arange(len(chosen)), chosen]).sum())
        rows += len(chosen)
    assert 100 * lost / rows <= 0.5
    assert "of 0.5 points expected to be lost" in after.remarks[-1]


def test_goals_are_checked() -> None:
    several: list[dict[str, Any]] = [
        {}, {"slope": 1e-3, "bytes": 100}, {"bytes": "many"}, {"drop": "5%"}, {"drop": "1pt", "data": False},
    ]  # fmt: skip
    for wrong in several:
        with pytest.raises(UsageError, match="rate-obs"):
            RateOBS(**wrong)
    with pytest.raises(UsageError, match="give slope"):
        per_site({"*": RateOBS(bytes="1/4")}).apply(job_of("conv"))


def test_outputs_that_are_no_classes_count_by_their_squared_error() -> None:
    job = prepare(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 1)), Task(calibration=[torch.randn(40, 8)]))
    after = RateOBS(slope=1e-3).apply(job)
    assert "squared error" in after.remarks[0]
    (outputs_O, _), _ = sensitivities(job, selected_sites(job)).values()
    assert outputs_O is not None
    second = job.reference[1].weight.detach()  # type: ignore[index]
    np.testing.assert_allclose(outputs_O.numpy(), float(second.square().mean()), rtol=1e-5)  # (± w)² of each hidden unit
    with pytest.raises(NotApplicable, match="no class scores"):
        RateOBS(drop=1.0).apply(job)


def test_without_data_every_layer_has_the_same_relative_error() -> None:
    job = job_of("conv")
    after = RateOBS(slope=0.02, data=False).apply(job)
    assert "no data" in after.remarks[0]
    steps = [step_of(form) for each in selected_sites(job) if isinstance(form := form_at(after.model, each), Affine)]
    scales = [float(form_at(job.model, each).dense().detach().square().mean().sqrt()) for each in selected_sites(job)]
    np.testing.assert_allclose(np.array(steps) / scales, 0.02**0.5, rtol=1e-3)


def test_layers_that_nothing_tells_of_stay_and_are_named() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.dead = nn.Linear(8, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.dead(x[:, 0].flatten(1))

    job = prepare(Spare(), Task(calibration=[torch.randn(8, 2, 4, 4)]))
    notes = {row.site: row.note for row in RateOBS(slope=1e-5).apply(job).ledger}
    assert "no calibration batch calls its layer" in notes["unused.weight"]
    assert "no gradient reaches it" in notes["dead.weight"]
    assert notes["conv.weight"] == ""


def test_inputs_of_less_than_full_rank_and_of_zeros() -> None:
    weight = torch.randn(4, 10)
    row = torch.randn(1, 10)
    for gram_GII in ((row.T @ row)[None], torch.zeros(1, 10, 10)):
        form = encode(RateOBS(slope=1e-2), weight, Stats(gram_GII=gram_GII, sensitivity=1.0))
        assert torch.isfinite(form.dense()).all()


def test_outputs_that_are_not_finite_are_refused() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.mean() > 100)

    job = net_job()
    broken = Broken()
    with pytest.raises(DataError, match="NaN or infinite"):
        sensitivities(replace(job, model=broken), selected_sites(replace(job, model=broken)))


@pytest.mark.parametrize("slope", [1e-13, 1e-9, 1e-6, 1e-3, 1e3])
def test_a_file_gives_back_every_weight(slope: float, tmp_path: Path) -> None:
    job = job_of("conv")
    after = RateOBS(slope=slope).apply(job)
    save(after.model, tmp_path / "net.kogata")
    loaded = load(tmp_path / "net.kogata", into=job.reference)
    for each in selected_sites(job):
        form = form_at(after.model, each)
        assert torch.equal(form_at(loaded, each).dense(), form.dense())
        if isinstance(form, Affine):
            wanted = step_of(form) * codes(form)
            np.testing.assert_allclose(form.dense().detach().double().numpy(), wanted, rtol=1e-6)


def test_a_step_for_some_layers_meets_the_budget_of_the_whole_file() -> None:
    job = job_of("conv")
    after = only(RateOBS(bytes=14_000), Where(layers=("deep",))).apply(job)
    assert 0.99 * 14_000 <= len(pack(after.model).data) <= 14_000


def test_class_axis() -> None:
    sequence = torch.zeros(2, 5, 7)
    assert class_axis(sequence, torch.zeros(2, 7, dtype=torch.long)) == 1
    assert class_axis(sequence, torch.zeros(2, 5, dtype=torch.long)) == 2
    assert class_axis(sequence, None) is None
    assert class_axis(torch.zeros(4, 3), torch.zeros(4, 3)) is None
    assert class_axis((torch.zeros(4, 3), torch.zeros(4, 3)), None) is None


def test_compress_takes_bytes_in_place_of_a_method() -> None:
    job = job_of("conv")
    result = compress(job.reference, job.task, bytes="1/5", engine=None)
    assert 0.99 / 5 <= result.path.stat().st_size / result.report.dense.bytes <= 1 / 5
    assert sum(row.increase or 0.0 for row in result.report.layers) > 0
    for wrong in ({}, {"bytes": 9000, "method": RateOBS(slope=1.0)}):
        with pytest.raises(UsageError, match="give either a method"):
            compress(job.reference, job.task, **wrong)  # type: ignore[arg-type]

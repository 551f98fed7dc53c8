"""Every kind of layer: its inputs against explicit loops, and every family of methods on it, through a file and back."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task, compress
from kogata.calibration.costs import macs
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Gathered, Stat, power
from kogata.errors import NotApplicable
from kogata.forms import Dense, Form
from kogata.job import Job, Kind
from kogata.methods import GPTQ, SVD, KMeans, MagnitudePruning, RoundToNearest, Wanda, WhitenedSVD
from kogata.methods.base.method import Method
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.operations import grouped_mm
from kogata.network.sites import form_at, leaves_of, selected_sites, sites_of, unwrapped
from kogata.storage.load import load
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_near
from tests.core.layers import CASES, Case, Conv1D, Recurrent

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
BOTH = frozenset({Stat.SQUARE, Stat.GRAM})


def job_of(case: Case, seed: int = 0) -> tuple[Job, Tensor]:
    torch.manual_seed(seed)
    model, inputs = case.build().eval(), case.inputs()
    return prepare(model, Task(calibration=[inputs])), inputs


def matrices(job: Job, found: dict[str, Gathered]) -> dict[str, list[tuple[Tensor, Tensor | None]]]:
    """Each matrix of each weight with its gram, cut into the groups that have inputs of their own."""
    seen: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
    for site in selected_sites(job):
        root = form_at(job.model, site)
        for path, leaf, _ in leaves_of(root, site):
            gram_GII = found[site.name].of(root, path).gram_GII
            rows_OI = leaf.values.detach().flatten(1)
            parts = [None] if gram_GII is None else list(gram_GII)
            seen.setdefault(site.name, []).extend(zip(rows_OI.chunk(len(parts)), parts, strict=True))
    return seen


@pytest.mark.parametrize("name", CASES)
def test_grams_are_those_of_loops(name: str) -> None:
    job, inputs = job_of(CASES[name])
    before = surgery.plain(job.model).state_dict()
    found = {
        site.name: stats for site, stats in gather(job, dict.fromkeys(selected_sites(job), BOTH), surgery.clone(job.model))
    }
    wanted, ours = CASES[name].rows(job.model, inputs), matrices(job, found)
    for site, groups in wanted.items():
        seen = [(rows, gram) for rows, gram in ours[site] if gram is not None]
        assert len(seen) == len(groups)
        for (rows_OI, gram_II), (weight_OI, inputs_NI) in zip(seen, groups, strict=True):
            assert torch.equal(rows_OI, weight_OI)
            assert_near(gram_II, inputs_NI.T @ inputs_NI / len(inputs_NI), 1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in surgery.plain(job.model).state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_multiply_accumulates_are_those_of_the_rows(name: str) -> None:
    job, inputs = job_of(CASES[name])
    if name in ("bmm", "looped", "grouped", "packed"):  # one sample is not enough for these
        pytest.skip("its batch is no batch of samples")
    wanted = CASES[name].rows(job.model, inputs[:1])
    assert macs(job.model, inputs) == {
        site: sum(rows.numel() * len(weight) for weight, rows in groups) for site, groups in wanted.items()
    }


METHODS: tuple[Method, ...] = (
    RoundToNearest(bits=4), GPTQ(bits=4), MagnitudePruning(sparsity=0.7), KMeans(clusters=4), SVD(rank=2), WhitenedSVD(rank=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name) for method in METHODS for name in CASES
        if not (isinstance(method, WhitenedSVD) and name == "transposed_groups")
    ],
    ids=lambda part: part if isinstance(part, str) else part.title(),
)  # fmt: skip
def test_every_family_makes_it_smaller_and_reloads(method: Method, name: str, tmp_path: Path) -> None:
    job, inputs = job_of(CASES[name])
    after = method.apply(job)
    write_file(tmp_path / "before.kogata", pack(job.model))
    write_file(tmp_path / "after.kogata", pack(after.model))
    assert (tmp_path / "after.kogata").stat().st_size < (tmp_path / "before.kogata").stat().st_size
    loaded = load(tmp_path / "after.kogata", into=CASES[name].build().eval())
    with evaluating(after.model), evaluating(loaded), evaluating(surgery.plain(after.model)) as plain:
        output = after.model(inputs)
        assert torch.equal(loaded(inputs), output)
        assert_near(plain(inputs), output, 1e-6)
        changed = surgery.plain(after.model).state_dict()
        fresh = CASES[name].build().eval()
        fresh.load_state_dict(changed)
        assert_near(fresh(inputs), output, 1e-6)
    assert {row.site for row in after.ledger if not row.note}


@pytest.mark.parametrize("name", CASES)
def test_rounding_that_sees_the_inputs_changes_the_outputs_less(name: str) -> None:
    """Of each matrix alone, on the inputs that loops find: the error of its outputs is at most that of rounding to nearest."""
    job, inputs = job_of(CASES[name], seed=1)
    errors = []
    for method in (GPTQ(bits=3), RoundToNearest(bits=3)):
        after, total = method.apply(job), 0.0
        first = next(iter(CASES[name].rows(job.model, inputs)))  # whose inputs no layer before it has changed
        now, before = (CASES[name].rows(surgery.plain(each.model), inputs)[first] for each in (after, job))
        for (rounded_OI, _), (weight_OI, inputs_NI) in zip(now, before, strict=True):
            total += float((inputs_NI @ (rounded_OI - weight_OI).T).square().sum())
        errors.append(total)
    assert errors[0] <= errors[1]


def test_each_expert_has_scales_and_a_rank_of_its_own() -> None:
    job, _ = job_of(CASES["einsum"])
    for method, form in ((RoundToNearest(bits=4), "affine"), (SVD(rank=2), "product")):
        up = form_at(method.apply(job).model, next(site for site in sites_of(job.model) if site.name == "up"))
        assert up.describe().count(form) == 3
    pieces = SVD(rank=2).apply(job)
    weights = [surgery.plain(pieces.model).get_parameter("up")[e] for e in range(3)]
    assert [int(torch.linalg.matrix_rank(weight)) for weight in weights] == [2, 2, 2]


def test_rows_of_several_inputs_have_no_common_gram() -> None:
    job, _ = job_of(CASES["transposed_groups"])
    with pytest.raises(NotApplicable, match="do not all multiply the same inputs"):
        WhitenedSVD(rank=2).apply(job)


def test_an_expert_that_no_data_reaches_is_left_alone_and_named() -> None:
    job, _ = job_of(CASES["looped"])
    form = form_at(GPTQ(bits=4).apply(job).model, selected_sites(job)[0])
    assert isinstance(form, Form)
    assert [isinstance(part, Dense) for part in form.parts().values()] == [False, False, True]


def test_a_stacked_weight_that_is_dense_again_is_a_plain_parameter() -> None:
    for name in ("einsum", "transposed", "conv1d_gpt2"):
        job, _ = job_of(CASES[name])
        twin = surgery.clone(job.model)
        for site in selected_sites(job):
            for path, leaf, _ in list(leaves_of(form_at(twin, site), site)):
                surgery.replace(twin, site, path, Dense(2 * leaf.values.detach(), leaf.role))
            name = site.name
            assert torch.equal(twin.get_parameter(name), 2 * job.model.get_parameter(name))


def test_whitened_svd_of_one_matrix_among_others_is_the_best_on_its_inputs() -> None:
    job, inputs = job_of(CASES["bmm"])
    after = surgery.plain(WhitenedSVD(rank=3).apply(job).model).get_parameter("weight").detach()
    for e, part in enumerate(inputs.view(3, -1, 16)):
        weight = job.model.get_parameter("weight")[e].detach()
        spectrum = torch.linalg.svdvals((part @ weight.T).double())
        error = float((part @ (after[e] - weight).T).square().sum())
        assert error == pytest.approx(float(spectrum[3:].square().sum()), rel=1e-3)


def test_wanda_of_a_transposed_convolution_weighs_by_its_own_inputs() -> None:
    job, inputs = job_of(CASES["transposed_groups"])
    after = surgery.plain(Wanda(sparsity=0.5).apply(job).model)
    for (weight_OI, rows_NI), (pruned_OI, _) in zip(
        CASES["transposed_groups"].rows(job.model, inputs)["weight"],
        CASES["transposed_groups"].rows(after, inputs)["weight"], strict=True,
    ):  # fmt: skip
        score_OI = weight_OI.abs() * rows_NI.norm(dim=0)
        kept = score_OI >= score_OI.sort(dim=1, descending=True).values[:, score_OI.shape[1] // 2 - 1 : score_OI.shape[1] // 2]
        assert torch.equal(pruned_OI != 0, kept)


def test_output_gradients_of_any_layer() -> None:
    """gᵀg of a transposed convolution and of a matrix stored as [inputs, outputs]."""
    for layer, inputs in ((Conv1D(5, 16), torch.randn(4, 16)), (nn.ConvTranspose1d(4, 5, 3), torch.randn(4, 4, 6))):
        task = Task(calibration=[(inputs, torch.zeros(4))], loss=lambda output, _: output.square().sum() / 2)
        job = prepare(layer, task)
        site = selected_sites(job)[0]
        ((_, found),) = gather(job, {site: frozenset({Stat.GRADIENT})}, surgery.clone(job.model))
        outputs = layer(inputs).detach()  # the gradient of this loss
        g_NO = (outputs if outputs.ndim == 2 else outputs.movedim(1, -1)).flatten(0, -2)
        assert found.gradients.gradient_OO is not None
        assert_near(found.gradients.gradient_OO, g_NO.T @ g_NO / 4, 1e-5)


@pytest.mark.parametrize("name", ["conv1d_gpt2", "einsum", "transposed"])
def test_fisher_of_each_matrix(name: str) -> None:
    job, inputs = job_of(CASES[name])
    ((first, *_), needs) = selected_sites(job), frozenset({Stat.FISHER})
    site = next(site for site in selected_sites(job) if site.name in ("joint.weight", "up", "weight"))
    ((_, found),) = gather(job, {site: needs}, surgery.clone(job.model))
    root, model = form_at(job.model, site), surgery.clone(job.model, share=False)
    assert first is not None
    assert {path for path, _ in root.leaves()} == set(found.gradients.fisher)
    for path, leaf in root.leaves():
        assert found.gradients.fisher[path].shape == leaf.shape
    # The loss without labels sums the outputs under random signs; the fisher's sum is that of the dense gradients.
    total = sum(float(part.sum()) for part in found.gradients.fisher.values())
    signs, wanted = torch.Generator().manual_seed(job.seed), 0.0
    for n in range(len(inputs)):
        model.zero_grad()
        output = model(inputs[n : n + 1])
        (output * (2 * torch.randint(2, output.shape, generator=signs) - 1)).sum().backward()
        gradient = model.get_parameter(site.name).grad
        assert gradient is not None
        wanted += float(gradient.square().sum())
    assert total == pytest.approx(wanted / len(inputs), rel=1e-4)


def test_a_recurrent_layer_is_copied_trained_and_made_plain_again() -> None:
    job, inputs = job_of(CASES["lstm"])
    after = RoundToNearest(bits=4).apply(job)
    twin = surgery.clone(after.model, share=False)
    assert torch.equal(twin(inputs), after.model(inputs))
    twin(inputs).square().sum().backward()
    held = [leaf for site in selected_sites(job) for _, leaf in form_at(twin, site).leaves()]
    assert all(leaf.values.grad is not None and bool(leaf.values.grad.any()) for leaf in held)
    for leaf in held:
        leaf.values.data.mul_(2)
    assert not torch.equal(twin(inputs), after.model(inputs))
    site = next(site for site in selected_sites(job) if "weight_ih_l0" in site.name)
    surgery.attach(twin, site, Dense(form_at(job.model, site).dense().detach(), site.role))
    plain = surgery.plain(twin)
    assert type(plain.get_submodule("layer")) is nn.LSTM
    assert_near(plain(inputs), twin(inputs).detach(), 1e-6)


class Weird(nn.Module):
    """Weights that cannot be seen, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.never = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale, self.shuffled = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8, 8))
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(x) * self.scale
        return functional.linear(x, self.shuffled[self.get_buffer("order")])


def test_what_cannot_be_seen_says_why() -> None:
    job = prepare(Weird(), Task(calibration=[torch.randn(5, 8)]))
    notes = {row.site: row.note for row in GPTQ(bits=4).apply(job).ledger}
    assert notes["plain.weight"] == ""
    assert "no calibration batch calls its layer" in notes["never.weight"]
    assert "mul() does" in notes["scale"]
    assert "rearranges it" in notes["shuffled"]


def test_compiled_models_are_seen_every_time() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), backend="eager")
    job = prepare(model, Task(calibration=[torch.randn(5, 8)]))  # type: ignore[arg-type]
    for _ in range(3):
        job.model(torch.randn(5, 8))
        assert not any(row.note for row in GPTQ(bits=4).apply(job).ledger)


def test_the_names_of_a_wrapped_model_are_its_own(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()

    def compiled(model: nn.Module) -> nn.Module:
        return cast("nn.Module", torch.compile(model, backend="eager"))

    inputs = torch.randn(5, 8)
    for name, wrap in (("compiled", compiled), ("parallel", nn.DataParallel[nn.Module])):
        model = wrap(build())
        result = compress(model, Task(calibration=[inputs]), RoundToNearest(bits=8), output=tmp_path / name, engine=None)
        for into in (build(), wrap(build())):
            assert torch.equal(unwrapped(load(result.path, into=into))(inputs), result.model(inputs))


def test_kinds_are_those_of_what_is_computed() -> None:
    job, _ = job_of(CASES["einsum"])
    assert {site.name: site.kind for site in selected_sites(job)} == dict.fromkeys(("gate.weight", "up", "down"), Kind.LINEAR)
    lstm = Recurrent(nn.LSTM(4, 4))
    assert {site.kind for site in sites_of(lstm) if len(site.shape) > 1} == {Kind.LINEAR}


def test_attention_gets_its_statistics_through_the_layers_before_it() -> None:
    """What the heads give is made of the joint projection as it has become."""
    job, inputs = job_of(CASES["qkv"])
    changed, seen = surgery.clone(job.model), dict[str, Gathered]()
    with closing(gather(job, dict.fromkeys(selected_sites(job), BOTH), changed)) as gathered:
        for site, found in gathered:
            seen[site.name] = found
            surgery.replace(changed, site, "", Dense(0.5 * form_at(changed, site).dense().detach(), site.role))
    rows = CASES["qkv"].rows(changed, inputs)["attention.out_proj.weight"][0][1]
    gram_GII = seen["attention.out_proj.weight"].gram_GII
    assert gram_GII is not None
    assert_near(gram_GII[0], rows.T @ rows / len(rows), 1e-5)
    assert math.isfinite(power(changed.get_parameter("attention.out_proj.weight"), gram_GII))


@pytest.mark.parametrize(
    ("left", "right", "ends"),
    [
        ((10, 16), (3, 16, 8), [4, 4, 10]),
        ((3, 8, 16), (16, 10), [2, 7, 10]),
        ((8, 12), (12, 8), [3, 3, 10]),
        ((3, 8, 16), (3, 16, 8), None),
    ],
)
def test_a_stand_in_computes_what_it_stands_for(left: tuple[int, ...], right: tuple[int, ...], ends: list[int] | None) -> None:
    a, b = torch.randn(left), torch.randn(*right[:-2], right[-1], right[-2]).mT  # PyTorch wants the right one column by column
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    assert_near(grouped_mm(a, b, offs), functional.grouped_mm(a, b, offs=offs), 1e-5)

"""Surgery: copies that never touch each other, ties, and layers that are left alone or refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import kogata
from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.engines.lowering.lower import lower
from kogata.errors import UsageError
from kogata.forms import Dense, Masked, Role
from kogata.job import Job, Kind, Where
from kogata.methods import SVD, Half, KMeans, MagnitudePruning, RoundToNearest, StaticActivations
from kogata.methods.base.compose import chain, only, per_site
from kogata.network import surgery
from kogata.network.batch import evaluating
from kogata.network.sites import form_at, leaves_of, left_alone, model_bits, selected_sites, sites_of
from kogata.storage.load import load
from kogata.storage.write import pack, write_file
from kogata.testing.comparisons import assert_equal, assert_near, assert_untouched, snapshot, weights
from kogata.testing.models import job_of


def site_of(model: nn.Module, name: str) -> surgery.Site:
    return next(site for site in sites_of(model) if site.name == name)


def pruned(weight: Tensor) -> Masked:
    return Masked.of(weight.detach(), weight.detach() > 0)


def linear_job(model: nn.Module, features: int = 16) -> Job:
    return prepare(model, Task(calibration=[torch.randn(3, features)]))


def test_a_bias_after_the_weight_leaves_older_copies_alone() -> None:
    """Parametrizing a second parameter changes the class that the first one made, which copies would share."""
    model = nn.Linear(16, 16)
    surgery.attach(model, site_of(model, "weight"), pruned(model.weight))
    copies = [surgery.clone(model), surgery.clone(model, share=False)]
    before = [snapshot(twin) for twin in copies]
    surgery.attach(model, site_of(model, "bias"), pruned(model.bias))
    for twin, state in zip(copies, before, strict=True):
        assert_untouched(twin, state)
        assert not parametrize.is_parametrized(twin, "bias")
        assert isinstance(twin.bias, nn.Parameter)
    surgery.attach(copies[0], site_of(copies[0], "weight"), Dense(torch.ones(16, 16), Role.MATRIX))
    assert_untouched(copies[1], before[1])
    assert parametrize.is_parametrized(model, "weight")
    assert parametrize.is_parametrized(model, "bias")


def test_replacing_in_a_copy_leaves_the_original_alone() -> None:
    job = chain(SVD(rank=3), MagnitudePruning(sparsity=0.3)).apply(job_of("conv"))
    before = snapshot(job.model)
    twin = surgery.clone(job.model)
    for site in sites_of(twin):
        for path, leaf, _ in list(leaves_of(form_at(twin, site), site)):
            surgery.replace(twin, site, path, Dense(torch.zeros_like(leaf.values), Role.MATRIX))
    assert_untouched(job.model, before)
    assert all(float(weight.abs().sum()) == 0 for weight in weights(twin).values())


def test_a_shared_copy_shares_and_the_other_does_not() -> None:
    model = SVD(rank=3).apply(job_of("conv")).model
    shared, own = surgery.clone(model), surgery.clone(model, share=False)
    for parameter, same, other in zip(model.parameters(), shared.parameters(), own.parameters(), strict=True):
        assert same is parameter
        assert other is not parameter
        assert torch.equal(other, parameter)


def test_deepcopy_of_a_compressed_model_works() -> None:
    job = chain(SVD(rank=3), KMeans(clusters=6)).apply(job_of("conv"))
    assert_equal(weights(copy.deepcopy(job.model)), weights(job.model))


def test_tied_weights_are_one_site() -> None:
    model = job_of("tied").model
    site = site_of(model, "embedding.weight")
    assert site.aliases == ("out.weight",)
    assert site.kind is Kind.EMBEDDING
    surgery.attach(model, site, pruned(model.get_parameter("embedding.weight")))
    again = site_of(model, "embedding.weight")
    assert again == site
    surgery.attach(model, again, Dense(torch.ones(40, 24), Role.MATRIX))
    assert model.get_parameter("embedding.weight") is model.get_parameter("out.weight")
    assert sites_of(model)[0] == site


def test_a_module_used_twice_is_one_site() -> None:
    inner = nn.Linear(16, 16)
    job = linear_job(nn.Sequential(inner, nn.ReLU(), inner))
    after = MagnitudePruning(sparsity=0.5).apply(job)
    found = {site.name: site.aliases for site in sites_of(after.model)}
    assert found == {"0.weight": ("2.weight",), "0.bias": ("2.bias",)}
    inputs = torch.randn(3, 16)
    with evaluating(after.model):
        for model in (surgery.plain(after.model), lower(after.model)):
            assert_near(model(inputs), after.model(inputs), 1e-6)


def test_order_of_sites_does_not_depend_on_forms() -> None:
    model = nn.Linear(16, 16)
    before = sites_of(model)
    surgery.attach(model, site_of(model, "weight"), pruned(model.weight))
    assert sites_of(model) == before


def test_masks_fold_inside_the_factors_of_a_product() -> None:
    job = chain(SVD(rank=4), MagnitudePruning(sparsity=0.3), MagnitudePruning(sparsity=0.6)).apply(job_of("conv"))
    form = form_at(job.model, site_of(job.model, "hidden.weight"))
    assert form.describe() == "product(masked, masked)"
    assert [part.kept() for part in form.parts().values()] == [round(0.4 * 32 * 4), round(0.4 * 4 * 96)]


def test_a_new_leaf_takes_the_role_of_the_old_one() -> None:
    model = nn.Linear(16, 16)
    site = site_of(model, "weight")
    surgery.attach(model, site, pruned(model.weight))
    ((path, leaf),) = form_at(model, site).leaves()
    surgery.replace(model, site, path, Dense(torch.zeros_like(leaf.values), Role.MATRIX))
    assert [leaf.role for _, leaf in form_at(model, site).leaves()] == [Role.VALUES]


@pytest.mark.parametrize("foreign", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_weight_that_another_library_holds_is_left_alone_and_stored(foreign: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), foreign(nn.Linear(16, 16)))

    job = RoundToNearest(bits=4).apply(linear_job(build()))
    assert [site.name for site in sites_of(job.model)] == ["0.bias", "0.weight", "1.bias"]
    assert "another library" in left_alone(job.model)["1.weight"]
    write_file(tmp_path / "m.kogata", pack(job.model))
    loaded, inputs = load(tmp_path / "m.kogata", into=build()), torch.randn(2, 16)
    with evaluating(job.model), evaluating(loaded):
        assert torch.equal(loaded(inputs), job.model(inputs))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.list = nn.ParameterList([nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.rand(12))})
        self.table = nn.Parameter(torch.arange(12), requires_grad=False)
        self.out = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0] * self.named["gain"] + self.list[0] * self.table - self.list[1])


def test_parameter_lists_are_left_alone_and_stored(tmp_path: Path) -> None:
    inputs = torch.randn(3, 5, 16)
    job = MagnitudePruning(sparsity=0.5).apply(prepare(Recurrent(), Task(calibration=[inputs])))
    assert [site.name for site in sites_of(job.model) if site.role is Role.MATRIX] == [
        "lstm.weight_hh_l0", "lstm.weight_ih_l0", "out.weight",
    ]  # fmt: skip
    assert set(left_alone(job.model)) == {"list.0", "list.1", "named.gain"}
    write_file(tmp_path / "m.kogata", pack(job.model))
    loaded = load(tmp_path / "m.kogata", into=Recurrent())
    with evaluating(job.model), evaluating(loaded):
        assert torch.equal(loaded(inputs), job.model(inputs))
    assert loaded.get_parameter("list.0").requires_grad
    assert not loaded.get_parameter("table").requires_grad


def test_scalars_and_parameters_of_the_model_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.gain * x @ self.weight

    job = MagnitudePruning(sparsity=0.5).apply(linear_job(Scaled()))
    assert [(site.name, site.kind, site.shape) for site in sites_of(job.model)] == [
        ("gain", Kind.OTHER, ()), ("weight", Kind.OTHER, (16, 16)),
    ]  # fmt: skip
    inputs = torch.randn(2, 16)
    assert_near(surgery.plain(job.model)(inputs), job.model(inputs).detach(), 1e-6)


def test_a_bare_layer_is_lowered_too() -> None:
    job = SVD(rank=2).apply(linear_job(nn.Linear(16, 16)))
    inputs = torch.randn(2, 16)
    lowered = lower(job.model)
    assert_near(lowered(inputs), job.model(inputs).detach(), 1e-5)
    assert sum(p.numel() for p in lowered.parameters()) < 16 * 16


def test_bits_are_those_of_the_planes() -> None:
    model = nn.Linear(16, 16)
    assert model_bits(model) == 32 * (16 * 16 + 16)


def test_where_selects() -> None:
    job = job_of("conv")

    def names(*wheres: Where) -> list[str]:
        return [site.name for site in selected_sites(dataclasses.replace(job, where=wheres))]

    assert names() == ["conv.weight", "deep.weight", "hidden.weight", "out.weight"]
    assert names(Where(layers=("*",), ignore=("out",))) == ["conv.weight", "deep.weight", "hidden.weight"]
    assert names(Where(kinds=(Kind.CONV,))) == ["conv.weight", "deep.weight"]
    assert names(Where(kinds=(Kind.CONV,)), Where(layers=("d*",))) == ["deep.weight"]
    assert names(Where(layers=("conv*",), vectors=True)) == ["conv.bias"]
    assert names(Where(layers=("hidden.weight",))) == ["hidden.weight"]


def test_restrictions_in_each_other_intersect() -> None:
    inner, outer = Where(kinds=(Kind.CONV,)), Where(layers=("deep", "hidden"))
    for one, other in ((inner, outer), (outer, inner)):
        job = only(only(RoundToNearest(bits=8), one), other).apply(job_of("conv"))
        changed = [site.name for site in sites_of(job.model) if form_at(job.model, site).describe() != "dense"]
        assert changed == ["deep.weight"]


@pytest.mark.parametrize(
    "where",
    [
        Where(layers=("Hidden",)),
        Where(ignore=("*",)),
        Where(kinds=(Kind.EMBEDDING,)),
        Where(layers=("hidden",), kinds=(Kind.CONV,)),
    ],
)
def test_where_that_selects_nothing_lists_what_there_is(where: Where) -> None:
    with pytest.raises(UsageError, match=r"conv\.weight, deep\.weight, hidden\.weight, out\.weight"):
        selected_sites(job_of("conv").within(where))


def test_vectors_are_quantized_only_when_asked() -> None:
    job = only(RoundToNearest(bits=8), Where(layers=("hidden.bias",), vectors=True)).apply(job_of("conv"))
    changed = [site.name for site in sites_of(job.model) if form_at(job.model, site).describe() != "dense"]
    assert changed == ["hidden.bias"]
    assert job.where == ()


def test_per_site_plan() -> None:
    job = per_site({"conv": KMeans(clusters=4), "hidden": SVD(rank=4), "deep": Half()}).apply(job_of("conv"))
    forms = {site.name: form_at(job.model, site).describe() for site in sites_of(job.model)}
    assert forms["conv.weight"] == "codebook"
    assert forms["hidden.weight"] == "product"
    assert forms["deep.weight"] == forms["out.weight"] == "dense"


class Hub(nn.Module):
    """Saves and loads its state as models of transformers do: what the state lacks keeps its initial values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))

    def save_pretrained(self, path: Path) -> str:
        torch.save(self.state_dict(), path)
        return "saved"

    @classmethod
    def from_pretrained(cls, path: Path) -> Hub:
        model = cls()
        model.load_state_dict(torch.load(path), strict=False)
        return model


def test_a_model_saved_by_its_own_class_has_dense_weights(tmp_path: Path) -> None:
    model, x = Hub(), torch.randn(8, 32)
    result = kogata.compress(model, kogata.Task(calibration=[x]), KMeans(clusters=4), engine=None, output=tmp_path / "run")
    for made in (result.model, surgery.clone(result.model), kogata.load(result.path, into=Hub()), kogata.plain(result.model)):
        assert isinstance(made, Hub)
        assert made.save_pretrained(tmp_path / "hub.pt") == "saved"
        assert torch.equal(Hub.from_pretrained(tmp_path / "hub.pt")(x), result.model(x))
    assert "save_pretrained" not in vars(kogata.plain(result.model))
    assert "save_pretrained" not in vars(model)


def test_a_model_with_rounded_activations_is_not_saved_by_its_own_class(tmp_path: Path) -> None:
    job = kogata.prepare(Hub(), kogata.Task(calibration=[torch.randn(8, 32)]))
    made = kogata.chain(KMeans(clusters=4), StaticActivations(bits=8)).apply(job).model
    assert isinstance(made, Hub)
    with pytest.raises(UsageError, match=r"save_pretrained: .* has quantizers of activations"):
        made.save_pretrained(tmp_path / "hub.pt")

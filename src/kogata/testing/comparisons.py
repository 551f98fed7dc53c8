"""Comparisons that raise AssertionError. None uses a cosine similarity, which would not detect a wrong scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kogata.calibration.batches import first_batch
from kogata.forms import Affine, Codebook, Dense, Masked, Product, Sum, Tied
from kogata.forms.base import nodes
from kogata.job import Job
from kogata.network import depth, surgery
from kogata.network.batch import call, evaluating, tensors
from kogata.network.channels.masked import unmasked
from kogata.network.sites import form_at, sites_of
from kogata.storage.layout import PackedFile
from kogata.storage.load import load
from kogata.storage.write import foreign_forms, pack, write_file


def assert_near(found: object, wanted: object, tolerance: float) -> None:
    """Assert ‖found − wanted‖ ≤ tolerance · ‖wanted‖ for every tensor of two outputs."""
    ours, theirs = ([tensor.detach().double() for tensor in tensors(value)] for value in (found, wanted))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert ours
    for a, b in zip(ours, theirs, strict=True):
        error, norm = float((a - b).norm()), float(b.norm())
        assert norm > 0
        assert error <= tolerance * norm, f"relative error {error / norm:.2e}"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The dense weight of every site, in the dtype that the layer uses."""
    found: dict[str, Tensor] = {}
    for site in sites_of(model):
        for name in (site.name, *site.aliases):
            found[name] = _tensor(model, name)
    return found


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, parameter = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), parameter)
    assert isinstance(tensor, Tensor)
    return tensor.detach().clone()


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Assert that two sets of tensors are equal bit for bit and have the same dtypes."""
    assert found.keys() == wanted.keys()
    assert found
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything in a model that must not change: values and identity of tensors, classes, forms, training modes."""
    state = model.state_dict(keep_vars=True)
    return {
        "values": {name: tensor.detach().clone() for name, tensor in state.items()},
        "objects": {name: id(tensor) for name, tensor in state.items()},
        "trains": {name: tensor.requires_grad for name, tensor in state.items()},
        "classes": {name: type(module) for name, module in model.named_modules(remove_duplicate=False)},
        "modes": {name: module.training for name, module in model.named_modules(remove_duplicate=False)},
        "forms": {site.name: form_at(model, site).describe() for site in sites_of(model)},
    }


def assert_untouched(model: nn.Module, before: Mapping[str, object]) -> None:
    """Assert that a model still equals its snapshot."""
    now = snapshot(model)
    values, wanted = now.pop("values"), before["values"]
    assert isinstance(values, dict)
    assert isinstance(wanted, dict)
    assert_equal(values, wanted)
    assert now == {key: value for key, value in before.items() if key != "values"}


def batch_of(job: Job) -> tuple[Any, Any]:
    """Inputs and targets of the first calibration batch."""
    return first_batch(job.reference, job.task)


def output(job: Job, model: nn.Module) -> Any:
    """The output of a model for the first calibration batch."""
    with evaluating(model):
        return call(model, batch_of(job)[0])


def through_file(job: Job, model: nn.Module, folder: Path, packed: PackedFile | None = None) -> nn.Module:
    """The model after pack → write → load into a copy of the original in which all values were zeroed.

    Where ``packed``, the result of packing the model, is given, it is not packed again.
    """
    fresh = surgery.clone(job.reference, share=False)
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.zero_()
    path = folder / "model.kogata"
    write_file(path, pack(model) if packed is None else packed)
    return load(path, into=fresh, forms=foreign_forms(model))


def assert_structure_kept(before: nn.Module, after: nn.Module) -> None:
    """Assert that pruned entries are still zero and shared entries still equal, in every form of every weight.

    The values are those of the form at the same path in ``after``. A weight with a changed shape must have had no form, or a
    mask of whole rows and columns. Removed layers are ignored.
    """
    before = surgery.clone(before)
    for path, places in depth.shortened(after).items():
        depth.keep(before, path, places)
    sites = {site.name: site for site in sites_of(after)}
    plain, _ = unmasked(before)
    for site in sites_of(before):
        if site.name not in sites or sites[site.name].shape != site.shape:
            assert isinstance(form_at(plain, site), Dense)
            continue
        trees = dict(nodes(form_at(after, site)))
        for path, node in nodes(form_at(before, site)):
            if isinstance(node, Dense | Product | Sum):
                continue  # their parts are checked by themselves
            was, now = node.dense().detach().double(), trees[path].dense().detach().double()
            if isinstance(node, Masked | Affine):  # in other forms a zero is an ordinary value
                assert float(now[was == 0].abs().sum()) == 0, f"{site.name} {path}: pruned entries came back"
            if isinstance(node, Codebook):
                assert_shared(node.index.flatten().long(), now.flatten(), f"{site.name} {path}")
            if isinstance(node, Tied):
                on = node.sign.flatten() != 0
                shared = now.flatten()[on] * node.sign.flatten()[on]
                assert_shared(node.index.flatten()[on].long(), shared, f"{site.name} {path}")


def assert_shared(index: Tensor, values: Tensor, where: str) -> None:
    """Assert that all entries with the same index have the same value."""
    low = values.new_full((int(index.max()) + 1,), float("inf")).scatter_reduce(0, index, values, "amin")
    assert torch.equal(low[index], values), f"{where}: shared entries drifted apart"

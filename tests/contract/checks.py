"""Comparisons. Each asserts; none uses a cosine, which a wrong scale would pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kogata import artifact, surgery
from kogata.batch import call, tensors
from kogata.calibrate import evaluating, first_batch
from kogata.job import Job


def assert_near(found: object, wanted: object, tolerance: float) -> None:
    """Every tensor of two outputs, by ‖found − wanted‖ ≤ tolerance · ‖wanted‖."""
    ours, theirs = ([tensor.detach().double() for tensor in tensors(value)] for value in (found, wanted))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    assert ours
    for a, b in zip(ours, theirs, strict=True):
        error, norm = float((a - b).norm()), float(b.norm())
        assert norm > 0
        assert error <= tolerance * norm, f"relative error {error / norm:.2e}"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every site's dense weight, in the dtype the layer sees."""
    found: dict[str, Tensor] = {}
    for site in surgery.sites(model):
        for name in (site.name, *site.aliases):
            found[name] = _tensor(model, name)
    return found


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, parameter = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), parameter)
    assert isinstance(tensor, Tensor)
    return tensor.detach().clone()


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Two sets of tensors, bit for bit, with their dtypes."""
    assert found.keys() == wanted.keys()
    assert found
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything of a model that must not change: tensors, their identity, classes, forms, modes."""
    state = model.state_dict(keep_vars=True)
    return {
        "values": {name: tensor.detach().clone() for name, tensor in state.items()},
        "objects": {name: id(tensor) for name, tensor in state.items()},
        "trains": {name: tensor.requires_grad for name, tensor in state.items()},
        "classes": {name: type(module) for name, module in model.named_modules(remove_duplicate=False)},
        "modes": {name: module.training for name, module in model.named_modules(remove_duplicate=False)},
        "forms": {site.name: surgery.form_at(model, site).describe() for site in surgery.sites(model)},
    }


def assert_untouched(model: nn.Module, before: Mapping[str, object]) -> None:
    """A model is as its snapshot says."""
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
    """What a model makes of the first calibration batch."""
    with evaluating(model):
        return call(model, batch_of(job)[0])


def through_file(job: Job, model: nn.Module, folder: Path) -> nn.Module:
    """The model after pack → write → load into a copy of the original that has other values everywhere."""
    fresh = surgery.clone(job.reference, share=False)
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.zero_()
    path = folder / "model.kogata"
    artifact.write(path, artifact.pack(model))
    return artifact.load(path, into=fresh)

"""The contract of every method: what it must not change, what must become smaller, and what a file must preserve.

Each check takes a :class:`Subject`, which holds a method and its results on the models of :mod:`kogata.testing.models`, and the
name of a model. Other packages run the checks by :func:`kogata.testing.method_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from kogata.engines.lowering.lower import lower
from kogata.errors import NotApplicable
from kogata.job import Job
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.methods.recover import Recover
from kogata.network import surgery
from kogata.network.quantizers import quantizers_of
from kogata.network.sites import form_at, model_bits, sites_of
from kogata.storage.layout import PackedFile
from kogata.storage.write import pack
from kogata.testing.comparisons import (
    assert_equal,
    assert_near,
    assert_structure_kept,
    assert_untouched,
    batch_of,
    output,
    snapshot,
    through_file,
    weights,
)
from kogata.testing.models import HALF, job_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A job, snapshots of its models before the method ran, and the job that the method returned."""

    given: Job
    model: Mapping[str, object]
    reference: Mapping[str, object]
    after: Job

    @cached_property
    def file(self) -> PackedFile:
        """The returned model as a file. Packing takes longer than most checks, so those that need the file share it."""
        return pack(self.after.model)


@cache
def _size_before(model: str) -> int:
    """Bytes of the file of the model with this name before any method ran."""
    return len(pack(job_of(model).model).data)


class Subject:
    """A method under test. It runs once on each model, and all checks share the result."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._trials: dict[str, Trial] = {}

    def trial(self, model: str) -> Trial:
        """The result of the method on the model with this name."""
        if model not in self._trials:
            job = job_of(model)
            before, reference = snapshot(job.model), snapshot(job.reference)
            self._trials[model] = Trial(given=job, model=before, reference=reference, after=self.method.apply(job))
        return self._trials[model]


def replaced(job: Job) -> list[str]:
    """The sites that the method changed, without those that it removed."""
    left = {site.name for site in sites_of(job.model)}
    return [row.site for row in job.ledger if not row.note and row.site in left]


def input_job_is_untouched(subject: Subject, model: str, folder: Path) -> None:
    """A method does not change the tensors, classes, modes, forms and ledger of the job that it is given."""
    trial = subject.trial(model)
    assert_untouched(trial.given.model, trial.model)
    assert_untouched(trial.given.reference, trial.reference)
    assert trial.given.ledger == (), "the ledger of the given job has changed"


def same_job_same_bytes(subject: Subject, model: str, folder: Path) -> None:
    """Two runs on equal jobs give models with the same file."""
    again = subject.method.apply(job_of(model))
    assert subject.trial(model).file.data == pack(again.model).data, "the second run gave other bytes"


def becomes_smaller(subject: Subject, model: str, folder: Path) -> None:
    """A weight method makes the file smaller, and the ledger names the weights. Other methods do not make it larger."""
    job, start = subject.trial(model).after, subject.trial(model).given
    if not isinstance(subject.method, WeightMethod):
        scales = len(list(quantizers_of(job.model)))  # each adds one stored number
        assert model_bits(job.model) <= model_bits(start.model) + 32 * scales, "the model needs more bits than before"
        return
    assert model_bits(job.model) < model_bits(start.model), "the model needs no fewer bits than before"
    assert replaced(job), "the ledger names no weight that changed"
    for row in job.ledger:
        assert (row.bits_after < row.bits_before) == (not row.note), f"{row.site}: bits and note contradict each other"
    assert len(subject.trial(model).file.data) < _size_before(model), "the file is no smaller than before"


def ledger_says_the_error(subject: Subject, model: str, folder: Path) -> None:
    """``predicted`` in each row is the relative squared error of the weight; a weight with a note is unchanged."""
    if not isinstance(subject.method, WeightMethod):
        return
    before, after = weights(subject.trial(model).given.model), weights(subject.trial(model).after.model)
    for row in subject.trial(model).after.ledger:
        if row.note:
            assert torch.equal(before[row.site], after[row.site]), f"{row.site}: has a note, but it changed"
            continue
        weight = before[row.site].double()
        error = float((after[row.site].double() - weight).square().sum() / weight.square().sum())
        slack = 1e-5 if before[row.site].dtype == torch.float32 else 2e-2  # in half precision the layer rounds once more
        assert row.predicted is not None, f"{row.site}: the ledger has no error"
        assert row.loss is None, f"{row.site}: a loss was measured although the job does not ask for it"
        assert abs(row.predicted - error) <= max(slack * error, 1e-4), f"{row.site}: predicted {row.predicted}, found {error}"


def file_gives_back_every_bit(subject: Subject, model: str, folder: Path) -> None:
    """The model loaded from the file has the same weights and outputs, and gives the same file."""
    job, file = subject.trial(model).after, subject.trial(model).file
    loaded = through_file(job, job.model, folder, file)
    assert_equal(weights(loaded), weights(job.model))
    assert_equal(surgery.plain(loaded).state_dict(), surgery.plain(job.model).state_dict())
    assert torch.equal(output(job, loaded), output(job, job.model)), "the loaded model has other outputs"
    assert pack(loaded).data == file.data, "the loaded model makes another file"


def state_dict_round_trip(subject: Subject, model: str, folder: Path) -> None:
    """PyTorch's state dict contains everything that the forms hold."""
    job = subject.trial(model).after
    twin = surgery.clone(job.model, share=False)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(job.model.state_dict())
    assert_equal(weights(twin), weights(job.model))


def training_changes_every_replaced_weight(subject: Subject, model: str, folder: Path) -> None:
    """Gradients reach a leaf of every replaced weight, and a step of an optimizer changes the weight."""
    job = subject.trial(model).after
    twin = surgery.clone(job.model, share=False).train()
    before = weights(twin)
    inputs, targets = batch_of(job)
    torch.nn.functional.cross_entropy(twin(inputs).float(), targets).backward()
    sites = {site.name: site for site in sites_of(twin)}
    for name in replaced(job):
        leaves = [leaf.values for _, leaf in form_at(twin, sites[name]).leaves()]
        assert any(leaf.grad is not None and float(leaf.grad.abs().max()) > 0 for leaf in leaves), f"{name}: no gradient"
    torch.optim.SGD(twin.parameters(), lr=10.0).step()
    after = weights(twin)
    for name in replaced(job):
        assert not torch.equal(before[name], after[name]), f"{name}: a step of training changed nothing"


def recovery_keeps_the_structure(subject: Subject, model: str, folder: Path) -> None:
    """Training afterwards keeps pruned entries zero and shared entries equal. float16 models cannot be trained."""
    if model == HALF:
        return
    job = subject.trial(model).after
    trained = Recover(epochs=2, learning_rate=1e-2).apply(job)
    assert_structure_kept(job.model, trained.model)
    for site in sites_of(job.model):
        assert form_at(job.model, site).describe() == form_at(trained.model, site).describe(), f"{site.name}: another form"


def plain_and_lowered_models_agree(subject: Subject, model: str, folder: Path) -> None:
    """The plain and the lowered model have no forms and the same outputs as the model with forms."""
    job = subject.trial(model).after
    tolerance = 1e-5 if next(job.model.parameters()).itemsize >= 4 else 3e-2
    for made in (surgery.plain(job.model), lower(job.model)):
        assert_near(output(job, made), output(job, job.model), tolerance)
        assert not any(hasattr(module, "parametrizations") for module in made.modules()), "a form is left"


def padding_rows_stay_zero(subject: Subject, model: str, folder: Path) -> None:
    """The padding row of an embedding is exactly zero afterwards, as it was before.

    Training may change it where another layer shares the weight: that layer's gradients reach the row in PyTorch, too.
    """
    model_after = subject.trial(model).after.model
    tied = {site.name for site in sites_of(model_after) if site.aliases and subject.method.ABOUT.training}
    for path, layer in model_after.named_modules():
        if isinstance(layer, torch.nn.Embedding) and layer.padding_idx is not None and f"{path}.weight" not in tied:
            assert not layer.weight[layer.padding_idx].any(), f"{path}: its padding row is not zero any more"


def refusal_says_why(method: Method, model: str, reason: str) -> None:
    """The method raises NotApplicable on this model, with its name and the regular expression ``reason`` in the message."""
    name, message = type(method).ABOUT.name, None
    try:
        method.apply(job_of(model))
    except NotApplicable as error:
        message = str(error)
    assert message is not None, f"{name} should refuse the model {model!r}, but does not"
    assert name in message, f"refused, but the message does not say by which method: {message}"
    assert re.search(reason, message), f"refused, but the message lacks {reason!r}: {message}"


CHECKS: Mapping[str, Callable[[Subject, str, Path], None]] = {
    check.__name__: check
    for check in (
        input_job_is_untouched, same_job_same_bytes, becomes_smaller, ledger_says_the_error, file_gives_back_every_bit,
        state_dict_round_trip, training_changes_every_replaced_weight, recovery_keeps_the_structure,
        plain_and_lowered_models_agree, padding_rows_stay_zero,
    )
}  # fmt: skip

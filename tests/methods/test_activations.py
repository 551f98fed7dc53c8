"""Static and dynamic activations, and int8: sums of integers in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Affine
from kogata.job import Where
from kogata.methods import DynamicActivations, RoundToNearest, StaticActivations
from kogata.methods.base.compose import chain, only
from kogata.methods.quantization.activations import static
from kogata.network.quantizers import Granularity, Static, quantizer_of, quantizers_of
from kogata.network.sites import form_of
from tests.methods.training import job_of, network, refused_settings

INT8 = chain(RoundToNearest(bits=8, symmetric=True), StaticActivations(bits=8))


def test_int8_is_sums_of_integers() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 40)
    layer = nn.Linear(40, 6, bias=False)
    model = INT8.apply(prepare(layer, Task(calibration=[inputs]))).model
    form, quantizer = form_of(model, "weight"), quantizer_of(model)
    assert isinstance(form, Affine)
    assert isinstance(quantizer, Static)
    # integers from the file's own numbers, in NumPy
    step = quantizer.scale.detach().numpy()
    x_codes = np.clip(np.rint(inputs.numpy() / step), -quantizer.zero, 255 - quantizer.zero).astype(np.int32)
    w_codes = form.code.numpy().astype(np.int32) - form.zero.numpy().astype(np.int32)
    accumulators = x_codes @ w_codes.T
    assert accumulators.dtype == np.int32
    scales = (step * form.scale.dense().detach().numpy()[:, 0]).astype(np.float64)
    found = model(inputs).detach().numpy().astype(np.float64) / scales
    assert np.abs(accumulators).max() > 2**12
    assert np.array_equal(np.rint(found).astype(np.int32), accumulators)
    assert np.abs(found - accumulators).max() < 0.05
    # with steps that are powers of two a float is the integer times the steps, bit for bit
    with torch.no_grad():
        quantizer.scale.fill_(2.0**-5)
        next(leaf for _, leaf in form.leaves()).values.fill_(2.0**-9)
    x_codes = np.clip(np.rint(inputs.numpy() * 2**5), -quantizer.zero, 255 - quantizer.zero).astype(np.int32)
    assert np.array_equal(model(inputs).detach().numpy(), (x_codes @ w_codes.T).astype(np.float32) * np.float32(2.0**-14))


def test_clipping_has_the_least_error_on_a_grid() -> None:
    values = torch.randn(4000) ** 3  # long tails
    quantizer = static(values, 4)
    error = float((quantizer(values) - values).detach().square().mean())
    low, high = float(values.min()), float(values.max())
    zero = round(-low / (high - low) * 15)
    for ratio in np.linspace(0.02, 1.2, 60):
        step = ratio * (high - low) / 15
        other = np.clip(np.rint(values.numpy() / step), -zero, 15 - zero) * step
        assert error <= float(((other - values.numpy()) ** 2).mean()) * 1.02
    full = static(values, 4)
    with torch.no_grad():
        full.scale.fill_((high - low) / 15)
    assert error < 0.7 * float((full(values) - values).detach().square().mean())


def test_eight_bits_change_little_and_more_bits_less() -> None:
    job = job_of(network())
    inputs = torch.cat([batch[0] for batch in job.task.calibration])  # type: ignore[union-attr]
    wanted = job.model.eval()(inputs).detach()
    errors = [
        float((StaticActivations(bits=bits).apply(job).model.eval()(inputs).detach() - wanted).norm() / wanted.norm())
        for bits in (4, 8, 16)
    ]
    assert errors[1] < 0.03
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert not list(quantizers_of(job.model))


def test_dynamic_ranges_are_those_at_hand() -> None:
    torch.manual_seed(0)
    job = job_of(network())
    inputs = torch.randn(4, 12) * torch.tensor([[1e-3], [1.0], [1e3], [1.0]])
    first = only(DynamicActivations(bits=8, granularity=Granularity.TOKEN), "0").apply(job).model
    quantizer = quantizer_of(first.get_submodule("0"))
    assert quantizer is not None
    error = (quantizer(inputs).detach() - inputs).norm(dim=1) / inputs.norm(dim=1)
    assert float(error.max()) < 0.01


def test_what_has_no_such_layer_says_so() -> None:
    images = prepare(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), Task(calibration=[torch.randn(2, 1, 6, 6)])
    )
    after = DynamicActivations(bits=8, granularity=Granularity.TOKEN).apply(images)
    assert {row.site: row.note for row in after.ledger} == {"0.weight": "images have no tokens", "2.weight": ""}
    words = prepare(nn.Embedding(5, 3), Task(calibration=[torch.tensor([1, 2])]))
    with pytest.raises(NotApplicable, match=r"static-activations: nothing to do\. weight: it is not the weight of"):
        StaticActivations(bits=8).apply(words)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_layers_that_never_run_and_inputs_of_zeros() -> None:
    after = StaticActivations(bits=8).apply(prepare(Idle(), Task(calibration=[torch.zeros(4, 3)])))
    assert {row.site: row.note for row in after.ledger} == {"used.weight": "", "idle.weight": "it never runs"}
    assert bool(torch.isfinite(after.model(torch.randn(2, 3))).all())


def test_inputs_that_are_not_finite() -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(self.layer(x / 0))

    with pytest.raises(DataError, match=r"layer.weight are NaN or infinite"):
        StaticActivations(bits=8).apply(prepare(Explodes(), Task(calibration=[torch.ones(2, 3)])))


@pytest.mark.parametrize("make", [StaticActivations, DynamicActivations])
@pytest.mark.parametrize("bits", [0, 17])
def test_settings_are_checked(make: type[StaticActivations | DynamicActivations], bits: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 16"):
        refused_settings(make, bits=bits)


def test_only_some_layers() -> None:
    after = only(StaticActivations(bits=8), Where(layers=("3",))).apply(job_of(network()))
    assert [path for path, _ in quantizers_of(after.model)] == ["3"]

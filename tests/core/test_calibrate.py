"""Calibration against explicit loops, and the probe that measures one change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import kogata
from kogata import Task
from kogata.calibration.batches import first_batch
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.probe import Probe
from kogata.calibration.stats import Gathered, Stat
from kogata.errors import DataError
from kogata.forms import Dense, Masked, Role
from kogata.job import Job, Where
from kogata.methods import GPTQ, OBD, SVD, Half, KMeans, MagnitudePruning, Recover, Wanda
from kogata.methods.base.compose import chain, only
from kogata.network import surgery
from kogata.network.sites import form_at, selected_sites, sites_of
from kogata.testing.comparisons import assert_near, assert_untouched, snapshot

BOTH = frozenset({Stat.SQUARE, Stat.GRAM})


def stats(job: Job, needs: frozenset[Stat] = BOTH) -> dict[str, Gathered]:
    return {
        site.name: found for site, found in gather(job, dict.fromkeys(selected_sites(job), needs), surgery.clone(job.model))
    }


def columns_by_loops(layer: nn.Conv1d | nn.Conv2d, images: np.ndarray) -> np.ndarray:
    """The rows that the flattened weight multiplies, one for each output position, by explicit loops."""
    spatial = len(layer.kernel_size)
    stride, dilation, kernel = layer.stride, layer.dilation, layer.kernel_size
    pads: list[tuple[int, int]] = []
    for axis in range(spatial):
        if layer.padding == "same":
            total = dilation[axis] * (kernel[axis] - 1)
            pads.append((total // 2, total - total // 2))
        elif layer.padding == "valid":
            pads.append((0, 0))
        else:
            pads.append((int(layer.padding[axis]), int(layer.padding[axis])))
    mode = {"zeros": "constant", "reflect": "reflect", "circular": "wrap", "replicate": "edge"}[layer.padding_mode]
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), *pads], mode=mode)  # type: ignore[call-overload]
    sizes = [(padded.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(spatial)]
    rows = []
    for image in padded:
        for where in np.ndindex(*sizes):
            row = []
            for channel in image:
                for offset in np.ndindex(*kernel):
                    row.append(channel[tuple(where[a] * stride[a] + offset[a] * dilation[a] for a in range(spatial))])
            rows.append(row)
    return np.array(rows)


CONVOLUTIONS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Conv2d(2, 3, 3), (2, 6, 5)),
    (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 6, 7)),
    (nn.Conv2d(2, 3, (3, 4), padding="same", dilation=(1, 2)), (2, 6, 7)),
    (nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 5, 5)),
    (nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), (3, 11)),
    (nn.Conv1d(3, 4, 4, padding="same"), (3, 9)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch copies, and says so
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_convolutions_equal_loops(layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> None:
    batches = [torch.randn(2, *shape), torch.randn(1, *shape)]
    found = stats(prepare(layer, Task(calibration=batches)))["weight"]
    rows = np.concatenate([columns_by_loops(layer, batch.numpy()) for batch in batches])
    # The rows are the right ones if they reproduce the layer's own output.
    outputs = layer(batches[0]).detach().flatten(2).transpose(1, 2).flatten(0, 1)
    ours = columns_by_loops(layer, batches[0].numpy()) @ layer.weight.detach().flatten(1).numpy().T.astype(np.float64)
    assert layer.bias is not None
    np.testing.assert_allclose(ours + layer.bias.detach().numpy(), outputs, rtol=1e-4, atol=1e-5)
    assert found.square_GI is not None
    assert found.gram_GII is not None
    np.testing.assert_allclose(found.square_GI[0], (rows**2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.gram_GII[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4)


def test_linear_equals_loops_over_any_leading_axes() -> None:
    batches = [torch.randn(3, 4, 6), torch.randn(2, 1, 6)]
    found = stats(prepare(nn.Linear(6, 2), Task(calibration=batches)))["weight"]
    gram, count = np.zeros((6, 6)), 0
    for batch in batches:
        for x in batch.numpy().astype(np.float64).reshape(-1, 6):
            count += 1
            for i in range(6):
                for j in range(6):
                    gram[i, j] += x[i] * x[j]
    assert found.gram_GII is not None
    assert found.square_GI is not None
    np.testing.assert_allclose(found.gram_GII[0], gram / count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.square_GI[0], np.diag(gram) / count, rtol=1e-4)


def test_a_layer_called_twice_sums_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model, inputs = Twice(), torch.randn(4, 6)
    found = stats(prepare(model, Task(calibration=[inputs])))["inner.weight"].square_GI
    assert found is not None
    np.testing.assert_allclose(found[0], torch.cat([inputs, model.inner(inputs).detach()]).square().mean(0), rtol=1e-5)


def test_inputs_passed_by_name_are_seen() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    inputs = torch.randn(4, 6)
    found = stats(prepare(Named(), Task(calibration=[{"x": inputs}])))["inner.weight"].square_GI
    assert found is not None
    np.testing.assert_allclose(found[0], inputs.square().mean(0), rtol=1e-5)


def test_only_what_is_asked_for() -> None:
    job = prepare(nn.Linear(6, 2), Task(calibration=[torch.randn(3, 6)]))
    square = stats(job, frozenset({Stat.SQUARE}))["weight"]
    assert square.square_GI is not None
    assert square.gram_GII is None
    assert stats(job, frozenset())["weight"] == Gathered()


def test_a_forward_loop_calibrates() -> None:
    """A function that runs the model itself gives the same statistics as the batches it runs."""
    model, inputs = nn.Linear(6, 2), torch.randn(5, 6)
    calls: list[int] = []

    def loop(network: nn.Module) -> None:
        for rows in (inputs[:2], inputs[2:]):
            calls.append(len(rows))
            network(rows)

    job = prepare(model, Task(calibration=loop))  # type: ignore[arg-type]
    found, wanted = stats(job)["weight"], stats(prepare(model, Task(calibration=[inputs])))["weight"]
    assert found.square_GI is not None
    assert wanted.square_GI is not None
    np.testing.assert_allclose(found.square_GI, wanted.square_GI, rtol=1e-6)
    assert calls[-2:] == [2, 3]
    first, targets = first_batch(model, job.task)
    assert torch.equal(first[0], inputs[:2])
    assert targets is None


def test_a_loop_may_reuse_the_memory_of_its_batches() -> None:
    inputs, buffer = torch.randn(3, 5, 6) * torch.tensor([0.1, 1.0, 10.0])[:, None, None], torch.empty(5, 6)

    def loop(network: nn.Module) -> None:
        for rows in inputs:
            network(buffer.copy_(rows))

    found = stats(prepare(nn.Linear(6, 2), Task(calibration=loop)))["weight"].gram_GII  # type: ignore[arg-type]
    assert found is not None
    rows = inputs.flatten(0, 1)
    assert_near(found[0], rows.T @ rows / len(rows), 1e-5)


class Past:
    """A cache that every call extends, as in the generation of text."""

    def __init__(self) -> None:
        self.rows = torch.zeros(0, 6)

    def extended(self, rows: Tensor) -> Tensor:
        self.rows = torch.cat([self.rows, rows])
        return self.rows


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self.inner(kwargs["past"].extended(kwargs["x"])).sum(0, keepdim=True)


def test_a_cache_that_every_call_extends_is_as_long_as_it_was_at_each_call() -> None:
    """Three calls see one, two and three rows, however often they are repeated."""
    rows = torch.randn(3, 6)

    def loop(network: nn.Module) -> None:
        past = Past()
        for x in rows:
            network(x=x[None], past=past)

    job = prepare(Remembering(), Task(calibration=loop))  # type: ignore[arg-type]
    wanted = torch.cat([rows[:1], rows[:2], rows[:3]])
    for _ in range(2):
        found = stats(job)["inner.weight"].gram_GII
        assert found is not None
        assert_near(found[0], wanted.T @ wanted / 6, 1e-5)


def test_a_call_that_cannot_be_repeated_is_refused() -> None:
    with pytest.raises(DataError, match="1 positional and 1 keyword arguments"):
        prepare(Remembering(), Task(calibration=lambda network: network(torch.ones(1, 6), x=1)))  # type: ignore[arg-type]


def test_a_forward_loop_that_never_calls_the_model() -> None:
    with pytest.raises(DataError, match="never calls the model"):
        prepare(nn.Linear(6, 2), Task(calibration=lambda model: None))  # type: ignore[arg-type]


def test_hooks_and_modes_are_gone_afterwards() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()
    job = prepare(model, Task(calibration=[torch.randn(3, 6)]))
    before = snapshot(model)
    stats(job)
    assert_untouched(model, before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(DataError, match=r"inputs of 0\.weight are NaN"):
        stats(Job(model=model, reference=model, task=Task(calibration=[torch.full((3, 6), float("nan"))])))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_probe_measures_the_change_of_the_loss() -> None:
    model, inputs, targets = nn.Linear(6, 3), torch.randn(8, 6), torch.randint(0, 3, (8,))
    task = Task(calibration=[(inputs, targets)], loss=nn.functional.cross_entropy)
    job = prepare(model, task)
    site = next(site for site in sites_of(model) if site.name == "weight")
    change = Probe(job).change(site, Dense(torch.zeros(3, 6), Role.MATRIX))
    before = nn.functional.cross_entropy(model(inputs), targets)
    assert model.bias is not None
    after = nn.functional.cross_entropy(model.bias.expand(8, 3), targets)
    assert change == pytest.approx(float(after.detach() - before.detach()), rel=1e-5)


def test_probe_without_labels_is_the_output_error() -> None:
    model, inputs = nn.Linear(6, 3, bias=False), torch.randn(8, 6)
    probe = Probe(prepare(model, Task(calibration=[inputs])))
    site = sites_of(model)[0]
    assert probe.base == 0
    assert probe.change(site, Dense(0.5 * model.weight.detach(), Role.MATRIX)) == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var"])
def test_weights_that_are_not_finite_are_refused(bad: float, name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    model.state_dict()[name].view(-1)[1] = bad
    with pytest.raises(DataError, match=rf"model: {name} .*holds 1 NaN or infinite"):
        prepare(model, Task(calibration=[torch.randn(3, 6)]))


def test_models_and_data_that_cannot_be_used() -> None:
    inputs = torch.randn(3, 6)
    with pytest.raises(DataError, match="ReLU has no weight"):
        prepare(nn.ReLU(), Task(calibration=[inputs]))
    with pytest.raises(DataError, match="calibration data is empty"):
        prepare(nn.Linear(6, 2), Task(calibration=[]))
    with pytest.raises(DataError, match="loss of the first calibration batch is nan"):
        prepare(nn.Linear(6, 2), Task(calibration=[torch.full((3, 6), float("nan"))]))
    with pytest.raises(DataError, match="is complex"):
        prepare(nn.Linear(6, 2, dtype=torch.complex64), Task(calibration=[inputs]))


class Holding(nn.Sequential):
    """A linear layer, with another tensor beside it."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(nn.Linear(6, 2))
        self.register_buffer("other", tensor)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Holding(torch.ones(4).to(torch.float8_e4m3fn)), "other has the dtype torch.float8_e4m3fn"),
        (Holding(torch.eye(4).to_sparse()), "other has the layout torch.sparse_coo"),
        (nn.Linear(6, 2, device="meta"), "weight is on the meta device"),
        (nn.Sequential(nn.LazyLinear(3)), "0.weight has no shape yet"),
    ],
    ids=["float8", "sparse", "meta", "lazy"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_tensors_without_usable_numbers_are_refused_by_name(model: nn.Module, reason: str) -> None:
    with pytest.raises(DataError, match=f"model: {reason}"):
        prepare(model, Task(calibration=[torch.randn(3, 6)]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_a_call_do_not_enter(mode: Any) -> None:
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)
    task = Task(calibration=[(inputs, torch.randint(0, 3, (16,)))], loss=nn.functional.cross_entropy)
    for method in (OBD(sparsity=0.5), GPTQ(bits=4)):
        wanted = kogata.compress(model, task, method, engine=None).model(inputs)
        with mode():
            found = kogata.compress(model, task, method, engine=None).model
        torch.testing.assert_close(found(inputs), wanted)


def test_training_data_may_be_a_stream() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return ((torch.full((6,), float(n)), n % 3) for n in range(16))

    task = Task(
        calibration=[torch.randn(4, 6)], train=DataLoader(Stream(), batch_size=4), loss=nn.functional.cross_entropy
    )  # fmt: skip
    result = kogata.compress(nn.Linear(6, 3), task, chain(KMeans(clusters=4), Recover(epochs=2)), engine=None)
    assert [epoch.epoch for step in result.report.steps for epoch in step.epochs] == [1, 2]


@pytest.mark.parametrize("field", ["calibration", "train"])
def test_an_iterator_would_be_empty_the_second_time(field: str) -> None:
    batches: dict[str, Any] = {"calibration": [torch.randn(2, 4)]}
    batches[field] = iter([torch.randn(2, 4)])
    with pytest.raises(DataError, match=f"{field} is an iterator"):
        prepare(nn.Linear(4, 4), Task(**batches))


def per_sample(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of each parameter, by one backward pass a sample."""
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    count = 0
    for inputs, targets in batches:
        for x, y in zip(inputs, targets, strict=True):
            model.zero_grad()
            nn.functional.cross_entropy(model(x[None]), y[None]).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                squares[name] += parameter.grad**2
            count += 1
    return {name: square / count for name, square in squares.items()}


def test_fisher_is_the_mean_squared_gradient_of_single_samples() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))
    batches = [(torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 4])), (torch.randn(2, 1, 4, 4), torch.tensor([2, 2]))]
    job = prepare(model, Task(calibration=batches, loss=nn.functional.cross_entropy))
    found = {
        site.name: gathered.gradients.fisher[""]
        for site, gathered in gather(job, dict.fromkeys(selected_sites(job), frozenset({Stat.FISHER})), surgery.clone(model))
    }
    for name, wanted in per_sample(surgery.clone(model, share=False), batches).items():
        if name in found:
            torch.testing.assert_close(found[name], wanted)
    assert set(found) == {"0.weight", "3.weight"}


def test_fisher_of_kept_values_is_that_of_the_kept_weights() -> None:
    model = nn.Linear(6, 4)
    batches = [(torch.randn(7, 6), torch.randint(0, 4, (7,)))]
    job = MagnitudePruning(sparsity=0.5).apply(prepare(model, Task(calibration=batches, loss=nn.functional.cross_entropy)))
    site = selected_sites(job)[0]
    form = form_at(job.model, site)
    assert isinstance(form, Masked)
    ((_, gathered),) = gather(job, dict.fromkeys([site], frozenset({Stat.FISHER})), surgery.clone(job.model))
    stats = gathered.of(form, "values")
    pruned = nn.Linear(6, 4)
    pruned.load_state_dict(surgery.plain(job.model).state_dict())
    dense = per_sample(pruned, batches)["weight"]
    assert stats.fisher is not None
    assert stats.position is not None
    torch.testing.assert_close(stats.fisher, dense.flatten()[stats.position])


def test_output_gradients_give_the_second_factor_of_the_hessian() -> None:
    """Of a linear layer with one row a sample, gradient of the weight = g xᵀ, so the Fisher diagonal is E[g² x²]."""
    model = nn.Linear(5, 3)
    batches = [(torch.randn(6, 5), torch.randint(0, 3, (6,)))]
    job = prepare(model, Task(calibration=batches, loss=nn.functional.cross_entropy))
    ((_, gathered),) = gather(job, dict.fromkeys(selected_sites(job), frozenset({Stat.GRADIENT})), surgery.clone(model))
    g = (torch.softmax(model(batches[0][0]), 1) - nn.functional.one_hot(batches[0][1], 3)).detach()
    found = gathered.gradients.gradient_OO
    assert found is not None
    torch.testing.assert_close(found, g.T @ g / 6)


def test_without_labels_the_fisher_is_that_of_the_outputs() -> None:
    """One output: v² = 1, so a sample's gradient is ±x and the mean of its square needs no sign."""
    model, inputs = nn.Linear(5, 1), torch.randn(6, 5)
    job = prepare(model, Task(calibration=[inputs]))
    ((_, gathered),) = gather(job, dict.fromkeys(selected_sites(job), frozenset({Stat.FISHER})), surgery.clone(model))
    torch.testing.assert_close(gathered.gradients.fisher[""], inputs.square().mean(0, keepdim=True))


def test_left_factor_sees_what_the_right_one_gives() -> None:
    model, inputs = nn.Linear(8, 6), torch.randn(20, 8)
    job = SVD(rank=2).apply(prepare(model, Task(calibration=[inputs])))
    site = selected_sites(job)[0]
    form = form_at(job.model, site)
    ((_, gathered),) = gather(job, dict.fromkeys([site], frozenset({Stat.GRAM})), surgery.clone(job.model))
    left, right = gathered.of(form, "factors.0").gram_GII, gathered.of(form, "factors.1").gram_GII
    middle = inputs @ form.get_submodule("factors.1").get_parameter("values").detach().T
    assert left is not None
    assert right is not None
    torch.testing.assert_close(left[0], middle.T @ middle / 20)
    torch.testing.assert_close(right[0], inputs.T @ inputs / 20)


def test_fisher_is_that_of_the_model_in_evaluation_mode() -> None:
    """Neither dropout nor the statistics of a batch of one sample may enter."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    batches = [(torch.randn(7, 6), torch.randint(0, 4, (7,)))]
    job = prepare(model.train(), Task(calibration=batches, loss=nn.functional.cross_entropy))
    found = stats(job, frozenset({Stat.FISHER}))
    wanted = per_sample(surgery.clone(model, share=False).eval(), batches)
    for name, gathered in found.items():
        torch.testing.assert_close(gathered.gradients.fisher[""], wanted[name])


def test_batch_normalization_follows_what_was_changed_before_it() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    nn.init.uniform_(model.get_submodule("1").get_buffer("running_mean"))
    nn.init.uniform_(model.get_submodule("1").get_buffer("running_var"), 0.5, 2)
    inputs = 3 * torch.randn(1500, 6) + 1
    job = prepare(model, Task(calibration=[inputs[:700], inputs[700:]]))
    after = Wanda(sparsity=0.5).apply(job).model
    reached, once = after.get_submodule("0")(inputs).detach(), model.get_submodule("0")(inputs).detach()
    norm, before = after.get_submodule("1"), model.get_submodule("1")
    mean, variance = before.get_buffer("running_mean"), before.get_buffer("running_var")
    torch.testing.assert_close(norm.get_buffer("running_mean"), mean + reached.mean(0) - once.mean(0))
    torch.testing.assert_close(norm.get_buffer("running_var"), variance * reached.var(0) / once.var(0))
    half = only(Half(), Where(vectors=True)).apply(job)  # whose numbers of half precision stay such
    for name in ("running_mean", "running_var"):
        buffer = Wanda(sparsity=0.5).apply(half).model.get_submodule("1").get_buffer(name)
        assert torch.equal(buffer.half().float(), buffer)
        torch.testing.assert_close(buffer, norm.get_buffer(name), rtol=1e-2, atol=1e-2)
    kept = only(Wanda(sparsity=0.5), "3").apply(job).model.get_submodule("1")
    for name in ("running_mean", "running_var"):
        assert torch.equal(kept.get_buffer(name), before.get_buffer(name)), "nothing before it has changed"

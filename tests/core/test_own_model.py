"""The user's model is his: nothing that he is given shares a tensor with it, and what cannot be copied is refused."""

from __future__ import annotations

import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import kogata
from kogata import Task, chain
from kogata.errors import DataError
from kogata.methods import GPTQ, LSQ, SVD, ChannelPruning, KMeans, MagnitudePruning, Recover, RoundToNearest
from kogata.methods.base.method import Method
from kogata.testing.comparisons import assert_equal, assert_untouched, snapshot, weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}


def shares_nothing(model: nn.Module, original: nn.Module) -> None:
    before = snapshot(original)
    assert not storages(model) & storages(original)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    model.double()
    assert_untouched(original, before)


@pytest.mark.parametrize(
    "method",
    [MagnitudePruning(sparsity=0.5), GPTQ(bits=4), ChannelPruning(sparsity=0.3), SVD(rank=2), Recover(epochs=1)],
    ids=lambda method: method.title(),
)
def test_what_a_method_returns_shares_nothing_with_the_model(method: Method) -> None:
    net = network()
    task = Task(calibration=[images()], train=[(images(), torch.zeros(16, dtype=torch.long))], loss=nn.functional.cross_entropy)
    job = method.apply(kogata.prepare(net, task))
    assert job.reference is net
    shares_nothing(job.model, net)


@pytest.mark.parametrize("made", [kogata.plain, kogata.lower])
@pytest.mark.parametrize("method", [SVD(rank=2), MagnitudePruning(sparsity=0.5), None])
def test_plain_and_lowered_models_share_nothing(made: Callable[[nn.Module], nn.Module], method: Method | None) -> None:
    net = network()
    job = kogata.prepare(net, Task(calibration=[images()]))
    model = net if method is None else method.apply(job).model
    shares_nothing(made(model), model)


def test_the_model_of_a_result_shares_nothing() -> None:
    net = network()
    net.register_buffer("unsaved", torch.ones(3), persistent=False)
    result = kogata.compress(net, Task(calibration=[images()]), MagnitudePruning(sparsity=0.5), engine=None)
    shares_nothing(result.model, net)


def test_a_plain_weight_trains_if_its_form_did() -> None:
    net = network()
    net[0].requires_grad_(False)
    job = RoundToNearest(bits=4).apply(kogata.prepare(net, Task(calibration=[images()])))
    trains = {name: parameter.requires_grad for name, parameter in kogata.plain(job.model).named_parameters()}
    assert trains == {name: parameter.requires_grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize(
    "method",
    [KMeans(clusters=4), MagnitudePruning(sparsity=0.5), SVD(rank=2), chain(SVD(rank=2), RoundToNearest(bits=4))],
    ids=lambda method: method.title(),
)
def test_a_frozen_weight_stays_frozen(method: Method) -> None:
    net = network()
    net[3].requires_grad_(False)
    batch = images(), torch.zeros(16, dtype=torch.long)
    task = Task(calibration=[batch], train=[batch], loss=nn.functional.cross_entropy)
    job = method.apply(kogata.prepare(net, task))
    trained = Recover(epochs=2, learning_rate=1e-2).apply(job)
    before, after = weights(job.model), weights(trained.model)
    assert torch.equal(before["3.weight"], after["3.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_a_frozen_weight_is_quantized_but_not_trained() -> None:
    net = network()
    net[3].requires_grad_(False)
    batch = images(), torch.zeros(16, dtype=torch.long)
    task = Task(calibration=[batch], train=[batch], loss=nn.functional.cross_entropy)
    start, long = (LSQ(bits=4, recover=Recover(epochs=n, learning_rate=1e-3)).apply(kogata.prepare(net, task)) for n in (1, 3))
    assert torch.equal(weights(start.model)["3.weight"], weights(long.model)["3.weight"])
    assert max(len(filters.unique()) for filters in weights(long.model)["3.weight"]) <= 16


class Lambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.act: Any = lambda x: torch.relu(self.a(x))  # pyright: ignore[reportUnknownLambdaType]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(x))


def wrapped_forward() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net.forward = torch.no_grad()(net.forward)
    return net


def wrapped_leaf() -> nn.Module:
    """No module of the original is called here: the function reads its weight."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net[1].forward = torch.autocast("cpu", enabled=False)(nn.Linear.forward.__get__(net[1]))
    return net


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].register_forward_hook(lambda module, args, output: net[0](output))
    return net


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        parent = self.parent()
        assert isinstance(parent, Parent)
        return parent.a(x)


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.child = Child(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x)


@pytest.mark.parametrize(
    ("build", "attribute"),
    [
        (Lambda, "'act'"), (wrapped_forward, "'forward'"), (wrapped_leaf, "'1.forward'"), (hooked, "'1.forward_hooks'"),
        (Parent, "'child.parent'"),
    ],
)  # fmt: skip
def test_code_that_stays_with_the_original_is_refused(build: Callable[[], nn.Module], attribute: str) -> None:
    with pytest.raises(DataError, match="runs the original's weights") as caught:
        kogata.prepare(build(), Task(calibration=[torch.randn(2, 8)]))
    assert attribute in str(caught.value)


class Bound(nn.Module):
    """Bound methods, and functions without the module, are copied as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.act, self.last = self.twice, lambda x: x + 1  # pyright: ignore[reportUnknownLambdaType]

    def twice(self, x: Tensor) -> Tensor:
        return self.a(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(x))


def test_bound_methods_are_no_reason_to_refuse() -> None:
    net = Bound()
    job = kogata.prepare(net, Task(calibration=[torch.randn(2, 8)]))
    shares_nothing(job.model, net)


class Delegating(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, outputs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates these hooks, which many models still have
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 4))


def round_trip(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = build(), torch.randn(4, 8)
    result = kogata.compress(model, Task(calibration=[inputs]), RoundToNearest(bits=4), engine=None)
    loaded = kogata.load(result.path, into=build())
    with torch.no_grad():
        assert torch.equal(loaded(inputs), result.model(inputs))


def test_a_wrapper_that_hands_attributes_on_is_no_form() -> None:
    round_trip(lambda: nn.Sequential(nn.Linear(8, 8), Delegating(8, 4)))


def test_masks_of_pytorch_load_into_a_new_model() -> None:
    round_trip(lambda: nn.Sequential(masked(nn.Linear(8, 8)), nn.Linear(8, 4)))


def test_weight_norm_loads_into_a_new_model() -> None:
    round_trip(normed)


def test_loading_into_a_model_on_meta_makes_it_real() -> None:
    net = network()
    with tempfile.TemporaryDirectory() as folder:
        job = MagnitudePruning(sparsity=0.5).apply(kogata.prepare(net, Task(calibration=[images()])))
        kogata.save(job.model, Path(folder, "net.kogata"))
        with torch.device("meta"):
            into = network()
        loaded = kogata.load(Path(folder, "net.kogata"), into=into)
        assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
        assert_equal(weights(loaded), weights(job.model))
        with torch.device("meta"):
            into = network()
            into.register_buffer("unsaved", torch.ones(3), persistent=False)
        with pytest.raises(DataError, match="unsaved is on the meta device"):
            kogata.load(Path(folder, "net.kogata"), into=into)
        lazy = nn.Sequential(nn.LazyLinear(4))
        with pytest.raises(DataError, match=r"0\.weight has no shape yet"):
            kogata.load(Path(folder, "net.kogata"), into=lazy)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"k": 3, "when": print}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_extra_state_is_named_in_the_report() -> None:
    net = nn.Sequential(Extra(8, 8))
    result = kogata.compress(net, Task(calibration=[torch.randn(2, 8)]), RoundToNearest(bits=4), engine=None)
    said = "extra state (get_extra_state) of 0 is not in the file: it holds builtin_function_or_method"
    assert any(said in note for note in result.report.notes)


def test_a_model_made_in_inference_mode_is_refused_with_the_reason() -> None:
    with torch.inference_mode():
        net = nn.Linear(8, 8)
    with pytest.raises(DataError, match="weight was made in inference mode"):
        kogata.prepare(net, Task(calibration=[torch.randn(2, 8)]))

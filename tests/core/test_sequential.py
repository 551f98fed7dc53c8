"""Running batches side by side: order, what each layer sees, and that nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.sequential import in_turn
from kogata.calibration.stats import Stat
from kogata.forms import Dense
from kogata.methods import GPTQ
from kogata.network import surgery
from kogata.network.sites import form_at, selected_sites
from kogata.testing.models import Attention


def run(model: nn.Module, batches: list[Tensor], names: list[str], change: Callable[[str], None]) -> dict[str, list[Tensor]]:
    """What each layer sees while ``change`` is called at each."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def visit(name: str) -> Any:
        return lambda layer, args, kwargs: seen[name].append(args[0].clone())

    layers = [(name, model.get_submodule(name), visit(name)) for name in names]
    for name in in_turn([partial(model, batch) for batch in batches], [model], layers):
        change(name)
    return seen


def test_every_layer_sees_what_the_changed_layers_before_it_give() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    batches = [torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4)]
    order: list[str] = []

    def halve(name: str) -> None:
        order.append(name)
        with torch.no_grad():
            model.get_parameter(f"{name}.weight").mul_(0.5)

    seen = run(model, batches, ["4", "0", "2"], halve)
    assert order == ["0", "2", "4"]  # as the model runs, not as they were listed
    with torch.no_grad():  # the model is now changed everywhere, so a plain run shows what they should have seen
        for i, batch in enumerate(batches):
            assert torch.equal(seen["0"][i], batch)
            assert torch.equal(seen["2"][i], model[:2](batch))
            assert torch.equal(seen["4"][i], model[:4](batch))


def test_a_layer_called_several_times_is_handed_over_at_its_last_call() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner(self.inner(self.inner(x))))

    order: list[str] = []
    seen = run(Loop(), [torch.randn(2, 3), torch.randn(2, 3)], ["inner", "out"], order.append)
    assert order == ["inner", "out"]
    assert {name: len(parts) for name, parts in seen.items()} == {"inner": 6, "out": 2}


def test_batches_may_take_different_ways() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.left(x) if len(x) > 2 else self.right(x))

    order: list[str] = []
    seen = run(Fork(), [torch.randn(3, 3), torch.randn(2, 3), torch.randn(4, 3)], ["left", "out"], order.append)
    assert sorted(order) == ["left", "out"]
    assert len(seen["left"]) == 2


class Skip(nn.Module):
    """A skip connection held in a local variable, on the model itself, or by a hook on a layer of PyTorch."""

    def __init__(self, held: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(16, 4)
        self.held, self.kept, self.parts = held, None, list[Tensor]()
        self.register_buffer("scale", torch.ones(()))
        if held == "hook":
            self.first.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        kept, rows = self.first(x).relu(), len(x)
        if self.held == "self":
            self.kept, self.rows, self.scale = kept, rows, torch.tensor(float(rows))
        self.parts.append(self.second(kept).relu())
        if self.held == "self":
            kept, rows = self.kept, self.scale
            assert self.rows == len(x)
            del self.rows
        elif self.held == "hook":
            kept = cast("Tensor", self.first.output).relu()
        return self.last(torch.cat([self.parts.pop(0), cast("Tensor", kept)], 1)) * rows


def keep(module: nn.Module, args: Any, output: Tensor) -> None:
    module.output = output


@pytest.mark.parametrize("held", ["self", "hook"])
def test_what_a_forward_keeps_on_its_modules_is_its_own_in_each_batch(held: str) -> None:
    plain, keeping = Skip("variable").eval(), Skip(held).eval()
    keeping.load_state_dict(plain.state_dict())
    rows = [torch.randn(rows, 6) * scale for rows, scale in ((4, 0.2), (3, 1.0), (5, 5.0))]
    for batches in (rows, [torch.cat(rows)[:4], torch.cat(rows)[4:8]]):  # of equal sizes, another's can be read without error
        found, wanted = (GPTQ(bits=3).apply(prepare(net, Task(calibration=batches))).model for net in (keeping, plain))
        for name in ("first", "second", "last"):
            weights = [surgery.plain(model).get_submodule(name).get_parameter("weight") for model in (found, wanted)]
            torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_forward_reads_the_context_variables_of_the_caller() -> None:
    factor = ContextVar[float]("factor")

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * factor.get()

    token = factor.set(2.0)
    try:
        job = GPTQ(bits=4).apply(prepare(Scaled(6, 8), Task(calibration=[torch.randn(16, 6)])))
        assert [row.note for row in job.ledger] == [""]
    finally:
        factor.reset(token)


def test_an_error_of_the_forward_is_raised_and_all_threads_end() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            if len(x) == 2:
                raise RuntimeError("only three")
            return self.out(x)

    model, threads = Fails(), threading.active_count()
    with pytest.raises(RuntimeError, match="only three"):
        run(model, [torch.randn(3, 3), torch.randn(2, 3), torch.randn(3, 3)], ["inner", "out"], lambda name: None)
    assert threading.active_count() == threads
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_caller_that_leaves_leaves_nothing_behind() -> None:
    model, threads = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), threading.active_count()
    layers = [(name, model.get_submodule(name), lambda layer, args, kwargs: None) for name in ("0", "1")]
    with closing(in_turn([partial(model, torch.randn(2, 3)) for _ in range(4)], [model], layers)) as names:
        assert next(names) == "0"
        assert threading.active_count() == threads + 4
    assert threading.active_count() == threads
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_statistics_are_of_the_compressed_prefix() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    batches = [torch.randn(3, 4), torch.randn(5, 4)]
    job = prepare(model, Task(calibration=batches))
    changed = surgery.clone(job.model)
    sites = selected_sites(job)
    grams: dict[str, Tensor] = {}
    for site, found in gather(job, dict.fromkeys(sites, frozenset({Stat.GRAM})), changed):
        assert found.gram_GII is not None
        grams[site.name] = found.gram_GII[0]
        surgery.replace(changed, site, "", Dense(0.1 * form_at(model, site).dense(), site.role))
    x = torch.cat(batches)
    hidden = torch.relu(nn.functional.linear(x, 0.1 * model.get_parameter("0.weight"), model.get_parameter("0.bias"))).detach()
    torch.testing.assert_close(grams["0.weight"], x.T @ x / 8)
    torch.testing.assert_close(grams["2.weight"], hidden.T @ hidden / 8)


def test_attention_projections() -> None:
    """The joint projection sees the attention's input, the last one what the heads give."""
    model = Attention().eval()
    inputs = torch.randn(3, 4, 16)
    job = prepare(model, Task(calibration=[inputs]))
    found = {
        s.name: g.gram_GII
        for s, g in gather(job, dict.fromkeys(selected_sites(job), frozenset({Stat.GRAM})), surgery.clone(model))
    }
    x = model.encoder(inputs).detach()
    attention = model.attention
    joint = found["attention.in_proj_weight"]
    assert joint is not None
    torch.testing.assert_close(joint[0], x.flatten(0, 1).T @ x.flatten(0, 1) / 12)
    qkv = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).detach()
    q, k, v = (part.reshape(3, 4, 2, 8).transpose(1, 2) for part in qkv.chunk(3, -1))
    heads = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(12, 16)
    last = found["attention.out_proj.weight"]
    assert last is not None
    torch.testing.assert_close(last[0], heads.T @ heads / 12)

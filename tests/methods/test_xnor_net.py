"""XNOR-Net: the scale in closed form, the gradient by the paper's formula, the kernel in integers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import NotApplicable
from kogata.forms import Binary
from kogata.job import Where
from kogata.methods import BinaryNet, XNORNet
from kogata.methods.base.compose import only
from kogata.network.quantizers import quantizers_of
from kogata.network.sites import form_of
from tests.methods.training import QUICK, accuracy, trained


def test_scale_is_the_least_squares_optimum() -> None:
    layer = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 5, 3))
    weight = layer[1].get_parameter("weight").detach().flatten(1)
    model = XNORNet(recover=QUICK).begin(layer).finish()
    form = form_of(model.get_submodule("1"), "weight")
    assert isinstance(form, Binary)
    scale = form.scale.dense().detach()
    for row, alpha in zip(weight, scale, strict=True):
        signs = row.sign()
        least = float((signs @ row) / (signs @ signs))  # the normal equation of min over α
        assert float(alpha) == pytest.approx(least, rel=1e-3)  # half precision
    assert torch.equal(form.positive, layer[1].get_parameter("weight") >= 0)


def test_convolution_counts_bits() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False))
    weight = model[1].get_parameter("weight").detach()
    net = XNORNet(recover=QUICK).begin(model)
    x = torch.randn(2, 4, 6, 6)
    found = net(x).detach() / weight.abs().flatten(1).mean(1).half().float()[:, None, None]
    signs, filters = (x >= 0).numpy(), (weight >= 0).numpy()
    for n in range(2):
        for o in range(6):
            for i in range(4):
                for j in range(4):
                    equal = int((signs[n, :, i : i + 3, j : j + 3] == filters[o]).sum())
                    assert round(float(found[n, o, i, j])) == 2 * equal - 36


def test_gradient_is_the_papers() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[1].get_parameter("weight")[0, 0] = 1.7  # past 1, where the sign has no gradient
    weight = model[1].get_parameter("weight").detach().clone()
    net = XNORNet(recover=QUICK).begin(model)
    x, upstream = torch.randn(5, 6), torch.randn(5, 2)
    (net(x) * upstream).sum().backward()
    outer = upstream.T @ torch.where(x >= 0, 1.0, -1.0)  # ∂C/∂W̃
    alpha = weight.abs().mean(1, keepdim=True)
    wanted = outer * (1 / 6 + alpha * (weight.abs() <= 1))
    (grad,) = [p.grad for p in net.parameters() if p.grad is not None]
    assert float((grad - wanted).norm() / wanted.norm()) < 1e-3


def test_training_learns() -> None:
    after = only(XNORNet(recover=QUICK), Where(layers=("3", "6"))).apply(trained())
    assert accuracy(after.model) > 0.6
    assert len(list(quantizers_of(after.model))) == 2


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Branching(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.two(x)


@pytest.mark.parametrize(
    ("model", "where", "reason"),
    [
        (Functional(), "two", r"two.weight: it reads the result of relu\(\)"),
        (Functional(), "one", "one.weight: it reads the model's own input"),
        (Branching(), "two", "cannot be traced"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)), "2", "reads the module 1"),
    ],
)
def test_what_has_no_activation_module_before_it_is_refused(model: nn.Module, where: str, reason: str) -> None:
    with pytest.raises(NotApplicable, match=f"xnor-net: .*{reason}"):
        XNORNet(recover=QUICK).begin(model, Where(layers=(where,)))


def test_signs_are_found_through_flattening() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(72, 3))
    net = XNORNet(recover=QUICK).begin(model, Where(layers=("4",)))
    assert [path for path, _ in quantizers_of(net.model)] == ["1"]
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 3)


class Pooled(nn.Module):
    """Pools by a function, after the activation."""

    def __init__(self, pool: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.act, self.out, self.pool = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.act(self.conv(x)), 2))


@pytest.mark.parametrize("kind", [XNORNet, BinaryNet])
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        Pooled(functional.max_pool2d),
        Pooled(functional.avg_pool2d),
    ],
)
def test_pooling_of_signs_is_refused(model: nn.Module, kind: type[XNORNet | BinaryNet]) -> None:
    last = "out" if isinstance(model, Pooled) else str(len(list(model.children())) - 1)
    with pytest.raises(NotApplicable, match="a pooling, which makes nearly all of the signs before it"):
        kind(recover=QUICK).begin(model, Where(layers=(last,)))


def test_signs_after_pooling_are_of_both_kinds() -> None:
    """The order of the paper, against the one that is refused: a maximum over four signs is +1 for 15 of 16 windows."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3))
    net, seen = XNORNet(recover=QUICK).begin(before.train(), Where(layers=("4",))), list[Tensor]()
    net.model.get_submodule("4").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.randn(64, 1, 12, 12))
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}
    assert 0.3 < float((seen[0] > 0).float().mean()) < 0.7
    independent = torch.randn(64, 8, 10, 10).sign()
    assert float((functional.max_pool2d(independent, 2) > 0).float().mean()) == pytest.approx(15 / 16, abs=0.01)


def test_a_row_of_zeros() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[1].get_parameter("weight")[0] = 0
    net = XNORNet(recover=QUICK).begin(model)
    out = net(torch.randn(3, 6))
    out.sum().backward()
    assert float(out[:, 0].detach().abs().max()) == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)

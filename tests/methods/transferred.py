"""What the tests of transferred filters share: oracles that see a transform only as a function of one filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.engines.lowering.costs import EAGER
from kogata.engines.lowering.lower import lower
from kogata.engines.lowering.rules import cheaper
from kogata.engines.onnxruntime import OnnxRuntime
from kogata.errors import NotApplicable
from kogata.forms import Form, Role
from kogata.forms.permuted import Permuted
from kogata.forms.tied import Tied
from kogata.job import Kind, Site
from kogata.methods.base.method import Method
from kogata.methods.base.weight import WeightMethod
from kogata.network import surgery
from kogata.network.sites import form_at, form_of, sites_of
from kogata.storage.dense import dense_bytes
from kogata.storage.load import load
from kogata.storage.write import save
from kogata.testing.comparisons import assert_near

Transform = Callable[[Tensor], Tensor]  # of one base filter [inputs, ...] to a filter [inputs, height, width]


def site_of(weight: Tensor) -> Site:
    return Site("layer", "weight", tuple(weight.shape), Kind.CONV, Role.MATRIX)


def unfolded(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """The patches of the images as columns, ``[channels · kernel, patches]``."""
    padding = int(layer.padding[0])
    return functional.unfold(images, (3, 3), padding=padding).transpose(0, 1).flatten(1)


def seen(layer: nn.Conv2d, images: Tensor) -> Stats:
    """The statistics of a layer's inputs."""
    columns_IR = unfolded(layer, images)
    return Stats(gram_GII=(columns_IR @ columns_IR.T / columns_IR.shape[1])[None])


def white(weight: Tensor) -> Stats:
    return Stats(gram_GII=torch.eye(weight[0].numel())[None])


def encoded(method: WeightMethod, weight: Tensor) -> Form:
    return method.encode(weight, site_of(weight), white(weight))


def bank(base: Tensor, transforms: Sequence[Transform], noise: float = 0.0) -> Tensor:
    """All transforms of every base filter, shuffled."""
    filters = torch.stack([transform(filter) for filter in base for transform in transforms])
    return (filters + noise * torch.randn_like(filters))[torch.randperm(len(filters))]


def groups(form: Form, copies: int) -> list[list[int]]:
    """Which filters share a base filter, transform by transform."""
    places = form.order.tolist() if isinstance(form, Permuted) else list(range(form.shape[0]))
    order = sorted(range(len(places)), key=places.__getitem__)
    return [order[start : start + copies] for start in range(0, len(order), copies)]


def nearest(weight: Tensor, members: Sequence[int], transforms: Sequence[Transform], shape: Sequence[int]) -> Tensor:
    """The filters ``members`` as transforms of one base filter, by least squares on all places at once."""
    units = torch.eye(int(torch.Size(shape).numel()), dtype=torch.float64).unflatten(1, tuple(shape))
    system = torch.cat([torch.stack([t(unit).flatten() for unit in units], 1) for t in transforms])
    wanted = torch.cat([weight[member].double().flatten() for member in members])
    return (system @ torch.linalg.lstsq(system, wanted[:, None]).solution).reshape(len(members), *weight.shape[1:])


def check_projection(method: WeightMethod, weight: Tensor, transforms: Sequence[Transform], shape: Sequence[int]) -> None:
    """Given which filters go together, no base is nearer."""
    form = encoded(method, weight)
    dense = form.dense().detach()
    for members in groups(form, len(transforms)):
        assert_near(dense[members], nearest(weight, members, transforms, shape), 1e-5)


def check_symmetric(method: WeightMethod, base: Tensor, transforms: Sequence[Transform]) -> None:
    """Filters that are transforms already, in any order, stay as they are, and with a little noise they are still found."""
    weight = bank(base, transforms)
    form = encoded(method, weight)
    assert_near(form.dense(), weight, 1e-6)
    assert form.kept() == base.numel()
    noisy = weight + 1e-2 * torch.randn_like(weight)
    assert float((encoded(method, noisy).dense() - weight).detach().norm()) < 1e-2 * weight.numel() ** 0.5


def check_round_trip(method: Method, folder: Path, outputs: int = 16) -> None:
    """A net with two such layers, through the file, bit for bit."""
    net, images = nn.Sequential(nn.Conv2d(3, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3)), torch.randn(4, 3, 8, 8)
    after = method.apply(prepare(net, Task(calibration=[images]))).model
    save(after, folder / "net.kogata")
    assert (folder / "net.kogata").stat().st_size < dense_bytes(net)
    loaded = load(folder / "net.kogata", into=surgery.clone(net, share=False))
    assert torch.equal(loaded(images), after(images))
    for one, other in zip(sites_of(loaded), sites_of(after), strict=True):
        assert form_at(loaded, one).describe() == form_at(after, other).describe()


def check_tolerance(method: Callable[[float], WeightMethod], outputs: int = 16) -> None:
    """The measured figure is the change of the layer's own outputs; a layer above the tolerance is refused with it."""
    layer, images = nn.Conv2d(4, outputs, 3, padding=1, bias=False), torch.randn(6, 4, 8, 8).cumsum(2)
    weight, stats = layer.weight.detach(), seen(layer, images)
    form = method(10.0).encode(weight, site_of(weight), stats)
    before = layer(images)
    after = functional.conv2d(images, form.dense(), padding=1)
    error = float((after - before).detach().norm() / before.detach().norm())
    assert 0.1 < error < 1.5
    assert torch.equal(method(error * 1.01).encode(weight, site_of(weight), stats).dense(), form.dense())
    with pytest.raises(NotApplicable, match=rf"changes its outputs by {error:.3f} \(relative\), the tolerance is"):
        method(error * 0.99).encode(weight, site_of(weight), stats)


def check_residual(shared: WeightMethod, mended: WeightMethod) -> None:
    """A product of some rank takes away what the best matrix of that rank can of the outputs."""
    layer, images = nn.Conv2d(4, 16, 3, bias=False), torch.randn(6, 4, 8, 8)
    weight, stats = layer.weight.detach(), seen(layer, images)
    plain, better = (method.encode(weight, site_of(weight), stats).dense().detach() for method in (shared, mended))
    columns_IR = unfolded(layer, images)
    values = torch.linalg.svdvals(((weight - plain).flatten(1) @ columns_IR).double())
    left = float(((weight - better).flatten(1) @ columns_IR).double().norm())
    assert left == pytest.approx(float(values[2:].norm()), rel=1e-3)


def check_refused(method: WeightMethod, outputs: int, *, square: bool) -> None:
    """Layers whose filters have no such transforms."""
    cases = [
        (torch.randn(outputs, 4, 3, 3), Stats(), "could not be seen"),
        (torch.randn(outputs, 1, 3, 3), Stats(gram_GII=torch.ones(outputs, 1, 1)), "grouped or depthwise"),
        (torch.randn(outputs + 1, 4, 3, 3), white(torch.ones(1, 36)), "not a multiple of"),
        (torch.randn(outputs, 9), white(torch.ones(1, 9)), "only filters of convolutions"),
    ]
    if square:
        cases += [(torch.randn(outputs, 4, h, w), white(torch.ones(1, 4 * h * w)), "square") for h, w in ((1, 1), (3, 1))]
    for weight, stats, reason in cases:
        with pytest.raises(NotApplicable, match=reason):
            method.encode(weight, site_of(weight), stats)


def check_no_cheaper_layer(method: WeightMethod) -> None:
    layer = nn.Conv2d(4, 16, 3)
    assert cheaper(encoded(method, layer.weight.detach()), layer, EAGER) is None


def check_lowered(method: WeightMethod, filters: int) -> None:
    """As plain layers the convolution has fewer filters, and every engine gives what the dense layer gives."""
    layer = nn.Conv2d(4, 12, 3, stride=2, padding=1, padding_mode="reflect")
    images = torch.randn(2, 4, 9, 9)
    model = surgery.clone(layer)
    surgery.attach(model, sites_of(model)[1], encoded(method, layer.weight.detach()))
    dense, lowered = surgery.plain(model)(images).detach(), lower(model)
    assert isinstance(form_of(model, "weight"), Permuted | Tied)
    assert [m.out_channels for m in lowered.modules() if isinstance(m, nn.Conv2d)] == [filters]
    assert_near(lowered(images), dense, 1e-5)
    assert_near(lowered(images[0]), dense[0], 1e-5)  # a single image without a batch
    assert_near(OnnxRuntime().open_model(model.eval(), images)(images), dense, 1e-5)

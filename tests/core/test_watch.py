"""What multiplies a weight, however the forward is written: against Gram matrices of the inputs computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata import Task
from kogata.calibration.gather import gather
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stat
from kogata.network import surgery
from kogata.network.sites import selected_sites
from kogata.testing.comparisons import assert_near
from tests.core.watched import SIZE, Forward, Weight, gathered, gram, inputs, of_rows, rounds_better


def test_a_weight_used_in_two_layouts_is_left_alone_and_named() -> None:
    batches, model = inputs(), Weight(lambda m, x: functional.linear(functional.linear(x, m.w), m.w.T), (8, SIZE))
    found = gathered(model, batches)["w"]
    assert found.gram_GII is None
    assert "multiplies it in two ways that do not go together" in found.unseen
    both = Weight(lambda m, x: functional.linear(functional.linear(x, m.w), m.w))
    assert_near(gram(both, batches)[0], of_rows(*batches, *(x @ both.w.T for x in batches)), 1e-5)


KEYWORDS: dict[str, Forward] = {
    "matmul": lambda m, x: torch.matmul(input=x, other=m.w.T),
    "left": lambda m, x: torch.matmul(input=m.w, other=x.T).T,
    "method": lambda m, x: x.matmul(other=m.w.T),
    "mm": lambda m, x: torch.mm(input=x, mat2=m.w.T),
    "method_mm": lambda m, x: x.mm(mat2=m.w.T),
    "bmm": lambda m, x: torch.bmm(input=x[None], mat2=m.w.T[None])[0],
    "addmm": lambda m, x: torch.addmm(m.each, mat1=x, mat2=m.w.T),
    "method_addmm": lambda m, x: m.each.addmm(mat1=x, mat2=m.w.T, beta=2),
    "baddbmm": lambda m, x: torch.baddbmm(input=m.each, batch1=x[None], batch2=m.w.T[None])[0],
    "linear": lambda m, x: functional.linear(weight=m.w, input=x),
    "linalg": lambda m, x: torch.linalg.matmul(input=x, other=m.w.T),
    "reflected": lambda m, x: m.w.T.__rmatmul__(x),
    "mv": lambda m, x: torch.stack([torch.mv(input=m.w, vec=row) for row in x]),
    "method_mv": lambda m, x: torch.stack([m.w.mv(vec=row) for row in x]),
    "addmv": lambda m, x: torch.stack([torch.addmv(m.each, mat=m.w, vec=row) for row in x]),
    "inner": lambda m, x: torch.inner(input=x, other=m.w),
    "inner_left": lambda m, x: torch.inner(m.w, x).T,
    "ellipsis": lambda m, x: torch.einsum("...i,oi->...o", x, m.w),
    "ellipsis_alone": lambda m, x: torch.einsum("...i,oi", x[None], m.w)[0],
    "ellipsis_both": lambda m, x: torch.einsum("...oi, ...i -> ...o", m.w, x),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_products_by_every_name(name: str) -> None:
    model, batches = Weight(KEYWORDS[name]), inputs()
    assert_near(gram(model, batches)[0], of_rows(*batches), 1e-5)
    rounds_better(model, batches)


def test_what_is_only_added_to_a_product_is_no_factor_of_it() -> None:
    class Added(Weight):
        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.w, x, x.T.tanh())

    found = gathered(Added(lambda m, x: x), [torch.randn(SIZE, SIZE)])["w"]
    assert found.gram_GII is None
    assert "addmm() does" in found.unseen


class Repeating(nn.Module):
    """A layer that is called once for every eight rows of the batch, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x) // 8):
            x = self.layer(x).tanh()
        return self.last(x)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_every_use_of_every_batch_enters_in_whatever_order_they_come(order: tuple[int, ...]) -> None:
    rows, model = inputs(1, 60)[0], Repeating()
    parts = rows.split([8, 32, 4, 16])
    batches = [parts[n] for n in order]
    uses: list[Tensor] = []
    for x in batches:
        for _ in range(len(x) // 8):
            uses.append(x)
            x = model.layer(x).tanh()
    assert_near(gram(model, batches, "layer.weight")[0], of_rows(*uses), 1e-5)


class Crossing(nn.Module):
    """Two layers in an order that the data choose."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.left, self.right) if x.sum() > 0 else (self.right, self.left)
        return second(first(x).tanh())


def test_batches_that_use_two_layers_in_opposite_orders_enter_into_both() -> None:
    model, (x, y) = Crossing(), (part + sign for part, sign in zip(inputs(2), (9, -9), strict=True))
    left, right = gram(model, [x, y], "left.weight")[0], gram(model, [x, y], "right.weight")[0]
    assert_near(left, of_rows(x, model.right(y).tanh()), 1e-5)
    assert_near(right, of_rows(model.left(x).tanh(), y), 1e-5)
    rounds_better(model, [x, y])


def test_an_expert_that_only_a_later_batch_reaches() -> None:
    class Routed(Weight):
        def forward(self, x: Tensor) -> Tensor:
            found, expert = torch.zeros_like(x), (x[:, 0] > 0).long()
            for number in expert.unique().tolist():
                found[expert == number] = functional.linear(x[expert == number], self.w[number])
            return found

    model, (x, y) = Routed(lambda m, x: x, (2, SIZE, SIZE)), inputs(2)
    x[:, 0] = -x[:, 0].abs()
    for number, found in enumerate(gram(model, [x, y])):
        chosen = [part[(part[:, 0] > 0) == bool(number)] for part in (x, y)]
        assert_near(found, of_rows(*chosen), 1e-5)
    rounds_better(model, [x, y])


def test_methods_that_compare_with_the_original_take_batches_of_different_lengths() -> None:
    job = prepare(Repeating().eval(), Task(calibration=list(inputs(1, 60)[0].split([8, 32, 4, 16]))))
    site = next(site for site in selected_sites(job) if site.name == "layer.weight")
    needs = {site: frozenset({Stat.GRAM, Stat.CROSS})}
    ((_, found),) = gather(job, needs, surgery.clone(job.model))
    assert found.gram_GII is not None
    assert found.cross_GII is not None
    assert_near(found.cross_GII, found.gram_GII, 1e-6)  # nothing has been changed


def set_all(m: Weight, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape)
    h[:] = x
    return functional.linear(h, m.w)


def set_a_part(m: Weight, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape)
    h[:, :8].copy_(x[:, :8])
    h[:, 8:] = x[:, 8:]
    return functional.linear(h, m.w)


def copied(m: Weight, x: Tensor) -> Tensor:
    return functional.linear(torch.empty(x.shape).copy_(x), m.w)


def added(m: Weight, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape)
    h += x
    return functional.linear(h, m.w)


def written_out(m: Weight, x: Tensor) -> Tensor:
    h = torch.empty(x.shape)
    torch.mul(x, 1, out=h)
    return functional.linear(h, m.w)


def cached(m: Weight, x: Tensor) -> Tensor:
    m.get_buffer("cache").copy_(x)
    return functional.linear(m.get_buffer("cache"), m.w)


def scaled_by_a_constant_made_in_steps(m: Weight, x: Tensor) -> Tensor:
    ones = torch.zeros(SIZE)
    ones[:8] = 1
    ones[8:].fill_(1)
    return functional.linear(x, m.w * ones)


def sliced(m: Weight, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: m.w @ row)(x)


def sliced_twice(m: Weight, x: Tensor) -> Tensor:
    each = torch.vmap(lambda row: functional.linear(row, m.w * m.each / m.each))
    return torch.vmap(each, in_dims=1, out_dims=1)(x.view(4, -1, SIZE)).reshape(-1, SIZE)


def inferred(m: Weight, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return functional.linear(x.clone(), m.w)


@pytest.mark.parametrize(
    "forward",
    [
        set_all, set_a_part, copied, added, written_out, cached, scaled_by_a_constant_made_in_steps, sliced, sliced_twice,
        inferred,
    ],
)  # fmt: skip
def test_what_flows_is_followed_whatever_carries_it(forward: Forward) -> None:
    model, batches = Weight(forward), inputs()
    model.register_buffer("cache", torch.zeros(32, SIZE))
    assert_near(gram(model, batches)[0], of_rows(*batches), 1e-5)
    if forward is not inferred:  # whose outputs cannot enter into a loss
        rounds_better(model, batches)


def zeroed(m: Weight, x: Tensor) -> Tensor:
    w = m.w.clone()
    w[:, :4] = 0
    return functional.linear(x, w)


def assembled(m: Weight, x: Tensor) -> Tensor:
    both = torch.zeros(2 * SIZE, SIZE)
    both[:SIZE] = m.w
    return functional.linear(x, both)


def masked_in_place(m: Weight, x: Tensor) -> Tensor:
    m.w.data.mul_(m.mask)
    return functional.linear(x, m.w)


@pytest.mark.parametrize("forward", [zeroed, assembled, masked_in_place])
def test_what_is_written_into_a_weight_or_with_it_is_named(forward: Forward) -> None:
    found = gathered(Weight(forward), inputs())["w"]
    assert found.gram_GII is None
    assert "writes it into another tensor, or something into it" in found.unseen


def test_a_weight_that_is_sliced_is_named() -> None:
    model = Weight(lambda m, x: torch.vmap(torch.matmul)(x.view(2, -1, SIZE), m.w), (2, SIZE, SIZE))
    assert "torch.vmap takes it apart" in gathered(model, inputs())["w"].unseen


class Queries(nn.Module):
    """Attention of queries that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(8, SIZE))
        self.query, self.key = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return (self.query(self.start) @ self.key(x).T).softmax(-1) @ x


def test_learned_queries_are_inputs_like_others() -> None:
    model, batches = Queries(), inputs()
    found = gathered(model, batches)
    for name, rows in (("query.weight", [model.start]), ("key.weight", batches)):
        gram_GII = found[name].gram_GII
        assert gram_GII is not None
        assert_near(gram_GII[0], of_rows(*rows), 1e-5)


def test_the_size_of_a_normalized_weight_is_a_weight_of_its_own() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.utils.weight_norm(nn.Linear(SIZE, SIZE))
    batches = inputs()
    found = gathered(model, batches)
    assert found["weight_v"].gram_GII is not None
    assert_near(found["weight_v"].gram_GII[0], of_rows(*batches), 1e-5)
    assert "makes another weight of it" in found["weight_g"].unseen


CHOOSING: dict[str, Forward] = {
    "bmm": lambda m, x: torch.bmm(x[:, None], m.w[(x[:, 0] > 0).long()])[:, 0],
    "select": lambda m, x: (m.w.index_select(0, (x[:, 0] > 0).long()).mT @ x[:, :, None])[..., 0],
    "einsum": lambda m, x: torch.einsum("ni,nio->no", x, m.w[(x[:, 0] > 0).long()]),
    "scaled": lambda m, x: torch.einsum("ni,nio->no", x / m.each, (m.w * m.each[:, None])[(x[:, 0] > 0).long()]),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_matrices_that_the_data_choose_have_the_inputs_that_chose_them(name: str) -> None:
    model, batches = Weight(CHOOSING[name], (3, SIZE, SIZE)), inputs()
    found = gathered(model, batches)["w"]
    assert found.gram_GII is not None
    assert found.reached_G is not None
    assert found.reached_G.tolist() == [True, True, False]
    for number in range(2):
        rows = [x[(x[:, 0] > 0) == bool(number)] for x in batches]
        assert_near(found.gram_GII[number], of_rows(*rows), 1e-5)
    rounds_better(model, batches)


def test_a_layer_whose_products_cannot_be_watched_is_not_said_to_be_unused() -> None:
    model = Weight(lambda m, x: x @ torch.from_numpy(m.w.detach().numpy().copy()))
    assert "its layer is called, but nothing that PyTorch lets one watch multiplies it" in gathered(model, inputs())["w"].unseen

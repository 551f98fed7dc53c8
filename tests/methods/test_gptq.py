"""GPTQ against Optimal Brain Quantization by its definition: one weight at a time, with exact updates of the inverse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kogata import Task
from kogata.calibration.prepare import prepare
from kogata.calibration.stats import Stats
from kogata.errors import DataError, NotApplicable, UsageError
from kogata.forms import Affine, Role
from kogata.job import Kind, Site
from kogata.methods import MagnitudePruning, RoundToNearest
from kogata.methods.quantization.gptq import GPTQ
from kogata.network import surgery
from kogata.network.sites import form_at, sites_of


def site(weight: Tensor) -> Site:
    return Site("layer", "weight", tuple(weight.shape), Kind.LINEAR, Role.MATRIX)


def gram(columns: int, rows: int = 200, seed: int = 0) -> Tensor:
    """Of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(-1, 0.5, columns)
    inputs = torch.randn(rows, columns, generator=generator) @ mixing
    return (inputs.T @ inputs / rows)[None]


def encode(method: GPTQ | RoundToNearest, weight: Tensor, gram_GII: Tensor | None) -> Affine:
    form = method.encode(weight, site(weight), Stats(gram_GII=gram_GII))
    assert isinstance(form, Affine)
    return form


def error(form: Affine, weight: Tensor, gram_GII: Tensor) -> float:
    difference = (form.dense().detach() - weight).double()
    return float(((difference @ gram_GII[0].double()) * difference).sum())


def damped(gram_GII: Tensor) -> np.ndarray:
    matrix = gram_GII[0].double().numpy()
    return matrix + 0.01 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def spread(form: Affine) -> tuple[np.ndarray, np.ndarray]:
    columns = form.code.shape[1]
    scale = form.scale.dense().detach().double().repeat_interleave(form.group, 1)[:, :columns]
    return scale.numpy(), form.zero.double().repeat_interleave(form.group, 1)[:, :columns].numpy()


def one_at_a_time(weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    """The codes of one row: each weight rounded, removed from the inverse Hessian, and made up for by all that are left."""
    w, inverse, codes = weight.copy(), np.linalg.inv(hessian), np.zeros(len(weight))
    for j in sorted(range(len(weight)), key=lambda j: -hessian[j, j]):
        codes[j] = np.clip(np.rint(w[j] / scale[j]) + zero[j], 0, top)
        wrong = w[j] - scale[j] * (codes[j] - zero[j])
        w -= wrong / inverse[j, j] * inverse[:, j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j] = inverse[:, j] = 0
    return codes


@pytest.mark.parametrize(("bits", "group", "columns"), [(2, None, 12), (3, 5, 13), (4, 8, 24), (3, 64, 150)])
def test_codes_are_those_of_exact_updates(bits: int, group: int | None, columns: int) -> None:
    weight, gram_GII = torch.randn(6, columns), gram(columns, 400)
    form = encode(GPTQ(bits=bits, group=group, rounds=0), weight, gram_GII)
    scale, zero = spread(form)
    for r, row in enumerate(weight.double().numpy()):
        wanted = one_at_a_time(row, damped(gram_GII), scale[r], zero[r], 2**bits - 1)
        np.testing.assert_array_equal(form.code[r].numpy(), wanted)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_error_is_below_rounding_and_falls_with_rounds(bits: int, symmetric: bool) -> None:
    weight, gram_GII = torch.randn(16, 40), gram(40)
    nearest = RoundToNearest(bits=bits, group=16, symmetric=symmetric)
    methods = (nearest, *(GPTQ(bits=bits, group=16, symmetric=symmetric, rounds=r) for r in (0, 1, 3)))
    errors = [error(encode(method, weight, gram_GII), weight, gram_GII) for method in methods]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < errors[1]
    assert errors[3] < 1.001 * errors[2]


def test_no_single_code_could_be_better() -> None:
    weight, gram_GII = torch.randn(4, 16), gram(16)
    form = encode(GPTQ(bits=2, group=8, rounds=2), weight, gram_GII)
    scale, zero = spread(form)
    hessian, codes = damped(gram_GII), form.code.double().numpy()

    def loss(r: int, code: np.ndarray) -> float:
        wrong = weight[r].double().numpy() - scale[r] * (code - zero[r])
        return float(wrong @ hessian @ wrong)

    for r, j, code in itertools.product(range(4), range(16), range(4)):
        other = codes[r].copy()
        other[j] = code
        assert loss(r, codes[r]) <= loss(r, other) * (1 + 1e-5)


def test_is_near_the_best_of_all_codes() -> None:
    """Brute force over the 4⁶ codes of each row under the scales that it chose."""
    weight, gram_GII = torch.randn(5, 6), gram(6)
    form = encode(GPTQ(bits=2, rounds=3), weight, gram_GII)
    scale, zero = spread(form)
    every = np.array(list(itertools.product(range(4), repeat=6)), float)
    best = 0.0
    for r in range(5):
        wrong = weight[r].double().numpy() - scale[r] * (every - zero[r])
        best += float(np.einsum("ni,ij,nj->n", wrong, damped(gram_GII), wrong).min())
    difference = (form.dense().detach() - weight).double().numpy()
    found = float(np.einsum("ri,ij,rj->", difference, damped(gram_GII), difference))
    assert best * (1 - 1e-6) <= found <= 1.5 * best


def test_scales_are_least_squares_under_the_codes() -> None:
    weight, gram_GII = torch.randn(4, 24), gram(24)
    form = encode(GPTQ(bits=3, group=8, rounds=12), weight, gram_GII)
    root = np.linalg.cholesky(damped(gram_GII)).T
    _, zero = spread(form)
    for r in range(4):
        steps = form.code[r].double().numpy() - zero[r]
        design = np.stack([root @ np.where(np.arange(24) // 8 == g, steps, 0) for g in range(3)], 1)
        wanted = np.linalg.lstsq(design, root @ weight[r].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(form.scale.dense()[r].detach().numpy(), wanted, rtol=2e-3)


@pytest.mark.parametrize("group", [None, 7])
def test_kept_values_of_a_mask(group: int | None) -> None:
    """The pruned stay zero and take no code; the loss is that of the whole rows."""
    full, gram_GII = torch.randn(8, 20), gram(20)
    position = torch.randperm(160)[:70].sort().values
    values = full.flatten()[position]
    errors = list[float]()
    for method in (RoundToNearest(bits=3, group=group), GPTQ(bits=3, group=group)):
        form = method.encode(values, site(full), Stats(gram_GII=gram_GII, position=position))
        assert isinstance(form, Affine)
        assert form.shape == (70,)
        difference = torch.zeros(160).index_put((position,), form.dense().detach() - values).reshape(8, 20)
        errors.append(float(((difference @ gram_GII[0]) * difference).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_after_pruning_the_mask_stays() -> None:
    model, batch = nn.Linear(24, 16), torch.randn(64, 24) @ torch.randn(24, 24)
    pruned = MagnitudePruning(sparsity=0.6).apply(prepare(model, Task(calibration=[batch])))
    after = GPTQ(bits=4, group=32).apply(pruned)
    site = next(site for site in sites_of(after.model) if site.name == "weight")
    assert form_at(after.model, site).describe() == "masked(affine)"
    before, found = (surgery.plain(job.model).get_parameter("weight") for job in (pruned, after))
    assert float(found[before == 0].detach().abs().max()) == 0


def test_groups_have_inputs_of_their_own() -> None:
    model, images = nn.Conv2d(4, 6, 3, groups=2), torch.randn(4, 4, 8, 8) * torch.tensor([0.2, 2.0, 0.7, 5.0])[:, None, None]
    method = GPTQ(bits=4)
    found = surgery.plain(method.apply(prepare(model, Task(calibration=[images]))).model).get_parameter("weight")
    for half in range(2):
        part = nn.Conv2d(2, 3, 3)
        part.weight = nn.Parameter(model.weight[3 * half : 3 * half + 3].detach())
        alone = surgery.plain(method.apply(prepare(part, Task(calibration=[images[:, 2 * half : 2 * half + 2]]))).model)
        torch.testing.assert_close(found[3 * half : 3 * half + 3], alone.get_parameter("weight"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 3])
def test_inputs_that_span_little(rows: int) -> None:
    """A singular gram, with inputs that are always zero, or with nothing else."""
    weight, inputs = torch.randn(1, 16), torch.randn(max(rows, 1), 16) * (rows > 0)
    inputs[:, :5] = 0
    gram_GII = (inputs.T @ inputs)[None] / len(inputs)
    form = encode(GPTQ(bits=4, group=6), weight, gram_GII)
    found = form.dense().detach()
    assert bool(torch.isfinite(found).all())
    if rows == 0:  # nothing to look at: each weight goes to the nearest level
        scale, zero = spread(form)
        levels = scale[0, :, None] * (np.arange(16) - zero[0, :, None])
        nearest = np.abs(levels - weight[0].numpy()[:, None]).min(1)
        np.testing.assert_allclose((found - weight).abs()[0].numpy(), nearest, atol=1e-6)


def test_weights_of_zero_stay_zero() -> None:
    weight = torch.cat([torch.zeros(3, 8), torch.randn(3, 8)], dim=1)
    for symmetric in (False, True):
        found = encode(GPTQ(bits=3, group=8, symmetric=symmetric), weight, torch.eye(16)[None]).dense().detach()
        assert float(found[:, :8].abs().max()) == 0


def test_unseen_inputs_and_nan_are_refused() -> None:
    with pytest.raises(NotApplicable, match="could not be seen"):
        encode(GPTQ(bits=4), torch.randn(4, 8), None)
    with pytest.raises(DataError, match=r"layer\.weight"):
        encode(GPTQ(bits=4), torch.full((4, 8), torch.nan), torch.eye(8)[None])


@pytest.mark.parametrize("settings", [{"bits": 0}, {"bits": 9}, {"group": 0}, {"damping": 0.0}, {"rounds": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"gptq: {next(iter(settings))}"):
        GPTQ(**({"bits": 4} | settings))  # pyright: ignore[reportArgumentType]

"""One small model with every form, index map, quantizer and kind of buffer in it, the same on every machine and for ever.

The numbers come from the raw stream of PCG64, so that a file written years ago can be compared with a model built today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from kogata.forms import (
    Affine,
    Binary,
    Codebook,
    Dense,
    Displacement,
    Fastfood,
    Form,
    Masked,
    Permuted,
    Product,
    Role,
    Separate,
    Stacked,
    Sum,
    Tied,
    Transposed,
    Vectors,
    ZeroRow,
)  # fmt: skip
from kogata.forms.filter_maps import Crops, Opposite, Orbit, Repeat
from kogata.forms.structured_maps import Circulant, Diagonal
from kogata.forms.tied import Hash
from kogata.network import depth, surgery
from kogata.network.quantizers import Dynamic, Granularity, Sign, Static, attach_quantizer
from kogata.network.sites import sites_of


class Draw:
    """Numbers that follow from how often it was asked."""

    def __init__(self) -> None:
        self._seeds: Iterator[int] = count(1)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in [-1, 1), with the 24 bits that float32 holds."""
        raw = np.random.PCG64(next(self._seeds)).random_raw(int(np.prod(shape)))
        return torch.from_numpy(((raw >> np.uint64(40)).astype(np.float64) / 2**23 - 1).reshape(shape)).to(dtype)

    def integers(self, below: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Uniform in [0, below)."""
        raw = np.random.PCG64(next(self._seeds)).random_raw(int(np.prod(shape)))
        return torch.from_numpy((raw >> np.uint64(20)).astype(np.int64).reshape(shape) % below).to(dtype)

    def mask(self, share: float, *shape: int) -> Tensor:
        """True for about this share."""
        return self.floats(*shape) < 2 * share - 1


def every_form() -> Mapping[str, Form]:
    """Forms by a name of their own: each alone, several nested, in all float types."""
    draw = Draw()

    def leaf(role: Role, *shape: int, dtype: torch.dtype = torch.float32) -> Dense:
        return Dense(draw.floats(*shape, dtype=dtype), role)

    def affine(bits: int, group: int, first: int, *others: int, dtype: torch.dtype = torch.float32) -> Affine:
        shape, columns = (first, *others), int(np.prod(others)) if others else first
        groups = (first if others else 1, -(-columns // group))
        kind = torch.uint8 if bits <= 8 else torch.int16 if bits < 16 else torch.int32
        code, zero = draw.integers(2**bits, *shape, dtype=kind), draw.integers(2**bits, *groups, dtype=kind)
        return Affine(code, leaf(Role.SCALE, *groups, dtype=dtype), zero, bits=bits, group=group)

    def product(equation: str, shape: Sequence[int], *factors: Sequence[int]) -> Product:
        return Product(equation, [leaf(Role.MATRIX, *factor) for factor in factors], shape)

    def masked(share: float, *shape: int) -> Masked:
        return Masked.of(draw.floats(*shape), draw.mask(share, *shape))

    def shared(clusters: int, *shape: int) -> Codebook:
        return Codebook.of(draw.integers(clusters, *shape), draw.floats(clusters))

    pruned = masked(0.1, 12, 40)
    pruned.values = shared(5, *pruned.values.shape)
    filters = [leaf(Role.MATRIX, 3, 4, 1, 3), leaf(Role.MATRIX, 2, 4, 3, 1)]
    member = torch.tensor([0, 1, 0, 0, 1], dtype=torch.uint8)
    found: dict[str, Form] = {
        "dense_32": leaf(Role.MATRIX, 5, 7),
        "dense_64": leaf(Role.MATRIX, 3, 2, dtype=torch.float64),
        "dense_16": leaf(Role.MATRIX, 6, 5, dtype=torch.float16),
        "dense_b16": leaf(Role.MATRIX, 6, 5, dtype=torch.bfloat16),
        "dense_exact": Dense(draw.floats(4, 6).half().float(), Role.MATRIX),
        "vector": leaf(Role.VECTOR, 9),
        "masked": masked(0.3, 9, 2, 3, 3),
        "masked_codebook": pruned,
        "masked_none": Masked.of(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)),
        "affine_4": affine(4, 16, 6, 5, 3, 3),
        "affine_8": affine(8, 64, 7, 10),
        "affine_12": affine(12, 3, 5, 8),
        "affine_16": affine(16, 8, 2, 8),
        "affine_1": affine(1, 5, 11),
        "affine_half": affine(3, 4, 4, 9, dtype=torch.float16),
        "affine_b16": affine(9, 4, 4, 9, dtype=torch.bfloat16),
        "codebook": shared(7, 5, 3, 3, 3),
        "codebook_one": Codebook.of(draw.integers(1, 4, 4), draw.floats(1)),
        "codebook_wide": Codebook.of(draw.integers(300, 20, 20, dtype=torch.int16), draw.floats(300)),
        "vectors": Vectors.of(draw.integers(6, 5, 3), draw.floats(3, 6, 4), (5, 11)),
        "binary": Binary.of(draw.floats(6, 3, 3, 3), draw.floats(6, 1)),
        "binary_one": Binary.of(draw.floats(5, 8), draw.floats(1, 1)),
        "pair": product("or,ri->oi", (6, 8), (6, 2), (2, 8)),
        "separable": product("orw,rih->oihw", (4, 3, 3, 3), (4, 2, 3), (2, 3, 3)),
        "tucker": product("os,srk,ri->oik", (4, 5, 3, 3), (4, 2), (2, 3, 9), (3, 5)),
        "kronecker": product("arc,rbd->abcd", (6, 8), (2, 2, 4), (2, 3, 2)),
        "butterfly": product("Aabc,ABbc,ABCc->CBAcba", (8, 8), (2,) * 4, (2,) * 4, (2,) * 4),
        "hash": Tied(Hash(seed=3), leaf(Role.VALUES, 17), (6, 9)),
        "repeat": Tied(Repeat(copies=3), leaf(Role.MATRIX, 2, 3, 3, 3), (6, 3, 3, 3)),
        "opposite": Tied(Opposite(), leaf(Role.MATRIX, 3, 2, 3, 3), (6, 2, 3, 3)),
        "orbit": Tied(Orbit(mirrored=False, stacked=False), leaf(Role.MATRIX, 2, 3, 3, 3), (8, 3, 3, 3)),
        "orbit_stacked": Tied(Orbit(mirrored=True, stacked=True), leaf(Role.MATRIX, 1, 16, 3, 3), (8, 16, 3, 3)),
        "crops": Tied(Crops(extent=4), leaf(Role.MATRIX, 2, 3, 4, 4), (8, 3, 3, 3)),
        "circulant": Tied(Circulant(block=4, seed=5), leaf(Role.VALUES, 2, 3, 4), (7, 10)),
        "diagonal": Tied(Diagonal(blocks=3), leaf(Role.MATRIX, 3, 3, 4), (8, 10)),
        "permuted": Permuted(torch.tensor([2, 0, 3, 1, 5, 4]), Tied(Repeat(copies=2), affine(4, 8, 3, 2, 3, 3), (6, 2, 3, 3))),
        "sum": Sum([Vectors.of(draw.integers(4, 4, 2), draw.floats(2, 4, 4), (4, 8)) for _ in range(2)]),
        "stacked": Stacked(member, filters, (3, 3)),
        "displacement": Displacement(leaf(Role.MATRIX, 2, 9), leaf(Role.MATRIX, 2, 9), (6, 9)),
        "fastfood": Fastfood([leaf(Role.MATRIX, 2, 8), leaf(Role.MATRIX, 2, 8), leaf(Role.MATRIX, 2, 7)], 11, (13, 7)),
        "transposed": Transposed(affine(4, 8, 6, 9), (9, 6), (1, 0), (9, 6)),
        "transposed_groups": Transposed(shared(5, 8, 3, 2, 2), (2, 3, 4, 2, 2), (0, 2, 1, 3, 4), (6, 4, 2, 2)),
        "separate": Separate([masked(0.3, 4, 6), affine(4, 4, 4, 6), leaf(Role.MATRIX, 4, 6)]),
        "zero_row": ZeroRow(shared(5, 8, 3), 2),
        "separate_transposed": Separate([Transposed(leaf(Role.MATRIX, 5, 3), (3, 5), (1, 0), (3, 5)) for _ in range(2)]),
        "rows_alike": Affine(draw.integers(8, 5, 7), leaf(Role.SCALE, 1, 3), draw.integers(8, 1, 3), bits=3, group=3),
    }  # fmt: skip
    return found


FORMS_OF_SCHEMA_1 = tuple(
    name for name in every_form() if not name.startswith(("transposed", "separate", "zero", "rows_alike"))
)
"""The forms that files of schema 1 may hold."""


class Holder(nn.Module):
    """One parameter, ``weight``."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tuple(shape), dtype=dtype))


class Zoo(nn.Module):
    """A module for each form, and layers for what is no form: buffers of all kinds, quantizers, lists that lose layers."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.forms = nn.ModuleDict({
            name: Holder(form.shape, next(leaf.values.dtype for _, leaf in form.leaves()))
            for name, form in every_form().items()
            if names is None or name in names
        })  # fmt: skip
        self.norm = nn.BatchNorm2d(5)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.act = nn.ReLU()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(4))
        self.register_buffer("table", torch.arange(300, dtype=torch.int32))
        self.register_buffer("wide", torch.tensor([[1 << 60, -(1 << 60)]]))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 3))


def zoo(names: Sequence[str] | None = None) -> Zoo:
    """The model with its forms, or those of ``names``, quantizers and shortened lists."""
    model, forms, draw = Zoo(names), every_form(), Draw()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith("forms.") and tensor.is_floating_point():
            tensor.data = draw.floats(*tensor.shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("num_batches_tracked").fill_(1234)
    for site in sites_of(model):
        if site.name.startswith("forms."):
            surgery.attach(model, site, forms[site.module.removeprefix("forms.")])
    attach_quantizer(model.first, Static(torch.tensor(0.0721), bits=4, zero=7))
    attach_quantizer(model.second, Dynamic(bits=8, granularity=Granularity.TOKEN))
    attach_quantizer(model.act, Sign())
    depth.keep(model, "blocks", (0, 2, 3))
    depth.keep(model, "blocks.1", (0, 2))
    return model

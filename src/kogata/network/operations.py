"""Operations that multiply a weight: which axes of the operand are outputs and inputs, and what it multiplies.

A layer is told by the operation that it calls, whatever its class: ``x @ w`` is a linear layer, and ``einsum`` over a third
axis a stack of them. Each function of ``PRODUCTS`` finds, for one operand of one call, the :class:`Use` that the call makes of
it; a new operation is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from string import ascii_letters
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from kogata.job import Kind
from kogata.network.input_rows import patches, transposed_patches

Arguments = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Use:
    """How one call multiplies an operand.

    ``roles`` has a letter for each axis of the operand, seen as ``view`` where that is given: ``o`` for outputs, ``i`` for
    inputs, which are summed over, and ``b`` for an axis that inputs and outputs have too. ``rows`` yields pieces of the inputs,
    ``[*b axes, rows, *i axes]``. The outputs of the call lie along ``channels``; None where they are not one axis.
    """

    kind: Kind
    roles: str
    rows: Callable[[], Iterator[Tensor]]
    view: tuple[int, ...] | None = None
    channels: int | None = None


def use_of(func: object, operand: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    """What a call makes of ``operand``, one of its arguments; None when it does not multiply it, or not as a matrix."""
    found = PRODUCTS.get(cast("Any", func))
    if found is None:
        return None
    names, product = found
    if names is None:
        return product(operand, {"args": args})
    known = dict(zip(names, args, strict=False)) | dict(kwargs)
    return product(operand, known)


def _linear(operand: Tensor, call: Arguments) -> Use | None:
    if call["weight"] is not operand:
        return None
    return Use(kind=Kind.LINEAR, roles="oi", rows=partial(_flat, call["input"]), channels=-1)


def _flat(inputs: Tensor) -> Iterator[Tensor]:
    yield inputs.detach().reshape(-1, inputs.shape[-1])


def _matmul(names: tuple[str, str], operand: Tensor, call: Arguments) -> Use | None:
    """``left @ right``, with any leading axes, which broadcast; ``names`` are those of the two arguments."""
    left, right = (cast("Tensor", call[name]) for name in names)
    if operand.ndim < 2 or left is right or (operand is not left and operand is not right):
        return None
    batch = "b" * (operand.ndim - 2)
    if right is operand:
        inputs = left if left.ndim > 1 else left[None]
        return Use(kind=Kind.LINEAR, roles=f"{batch}io", rows=partial(_broadcast, inputs, operand), channels=-1)
    inputs = right.mT if right.ndim > 1 else right[None]
    return Use(kind=Kind.LINEAR, roles=f"{batch}oi", rows=partial(_broadcast, inputs, operand), channels=-2)


def _inner(operand: Tensor, call: Arguments) -> Use | None:
    """``input @ otherᵀ`` along the last axes of both; all others are axes of the result."""
    inputs, other = call["input"], call["other"]
    if operand.ndim < 2 or inputs is other:
        return None
    roles = "o" * (operand.ndim - 1) + "i"
    return Use(kind=Kind.LINEAR, roles=roles, rows=partial(_flat, inputs if operand is other else other))


def _broadcast(inputs: Tensor, operand: Tensor) -> Iterator[Tensor]:
    """``[..., rows, columns]`` as ``[*leading axes of the operand, rows, columns]``; other leading axes become rows."""
    batch = torch.broadcast_shapes(inputs.shape[:-2], operand.shape[:-2])
    full = inputs.detach().expand(*batch, *inputs.shape[-2:])
    own = [1] * (len(batch) - operand.ndim + 2) + list(operand.shape[:-2])
    kept = [axis for axis, size in enumerate(own) if size > 1]
    merged = [axis for axis, size in enumerate(own) if size == 1]
    full = full.permute(*kept, *merged, len(batch), len(batch) + 1)
    shape = full.shape
    full = full.reshape(*shape[: len(kept)], -1, shape[-1])
    sizes = iter(full.shape)
    yield full.reshape(*(1 if size == 1 else next(sizes) for size in operand.shape[:-2]), *full.shape[len(kept) :])


def _einsum(operand: Tensor, call: Arguments) -> Use | None:
    """An axis of the operand that the others lack is one of outputs; one that the result lacks is one of inputs."""
    equation, *operands = call["args"]
    if not isinstance(equation, str):
        return None
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(cast("Sequence[Tensor]", operands[0]))
    equation = equation.replace(" ", "")
    if len([part for part in operands if part is operand]) > 1:
        return None
    letters, output = _spelled(equation, [part.ndim for part in operands])
    at = next(n for n, part in enumerate(operands) if part is operand)
    own, others = letters[at], letters[:at] + letters[at + 1 :]
    known = set("".join(others))
    if len(set(own)) < len(own) or any(letter not in known and letter not in output for letter in own):
        return None
    roles = "".join("o" if letter not in known else "b" if letter in output else "i" for letter in own)
    batch = [letter for letter in own if letter in known and letter in output]
    columns = [letter for letter in own if letter in known and letter not in output]
    rows = [letter for letter in output if letter not in own]
    if not columns:
        return None
    inputs = [part.detach() for n, part in enumerate(operands) if n != at]
    order = "".join([*batch, *rows, *columns])

    def pieces() -> Iterator[Tensor]:
        found = torch.einsum(f"{','.join(others)}->{order}", *inputs)
        yield found.reshape(*found.shape[: len(batch)], -1, *found.shape[len(batch) + len(rows) :])

    return Use(kind=Kind.LINEAR, roles=roles, rows=pieces)


def _spelled(equation: str, axes: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand, which has so many ``axes``, and of the result, with letters in the place of ellipses."""
    terms, arrow, output = equation.partition("->")
    free = "".join(letter for letter in ascii_letters if letter not in equation)
    hidden = [count - len(term.replace("...", "")) for term, count in zip(terms.split(","), axes, strict=True)]
    free = free[: max(hidden)]  # of an ellipsis of fewer axes the last ones
    letters = [term.replace("...", free[len(free) - more :]) for term, more in zip(terms.split(","), hidden, strict=True)]
    if not arrow:
        output = "..." * ("..." in terms) + "".join(sorted(x for x in set(terms) - set(",.") if terms.count(x) == 1))
    return letters, output.replace("...", free)


def _convolved(roles: str, pieces: Callable[..., Iterator[Tensor]], operand: Tensor, call: Arguments) -> Use | None:
    """A convolution, whose groups lie one after another along the first axis; ``pieces`` makes rows of its inputs."""
    if call["weight"] is not operand:
        return None
    groups, spatial = int(call.get("groups", 1)), operand.ndim - 2
    view = (groups, operand.shape[0] // groups, *operand.shape[1:])
    rows = partial(pieces, call["input"], operand.shape[2:], call, groups)
    return Use(kind=Kind.CONV, roles=roles + "i" * spatial, rows=rows, view=view, channels=-1 - spatial)


_MATMULS: Mapping[tuple[str, ...], tuple[Any, ...]] = {
    ("input", "other"): (torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__),
    ("input", "mat2"): (torch.mm, torch.bmm, Tensor.mm, Tensor.bmm),
    ("input", "vec"): (torch.mv, Tensor.mv),
    ("input", "mat1", "mat2"): (torch.addmm, Tensor.addmm),
    ("input", "batch1", "batch2"): (torch.baddbmm, Tensor.baddbmm),
    ("input", "mat", "vec"): (torch.addmv, Tensor.addmv),
}
"""Products of matrices by the names of their arguments, of which the last two are the left and the right one."""
_CONVOLVED = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

PRODUCTS: Mapping[Any, tuple[tuple[str, ...] | None, Callable[[Tensor, Arguments], Use | None]]] = {
    functional.linear: (("input", "weight", "bias"), _linear),
    torch.einsum: (None, _einsum),
    **{
        func: (names, partial(_matmul, cast("tuple[str, str]", names[-2:])))
        for names, functions in _MATMULS.items()
        for func in functions
    },
    Tensor.__rmatmul__: (("input", "other"), partial(_matmul, ("other", "input"))),
    torch.inner: (("input", "other"), _inner),
    Tensor.inner: (("input", "other"), _inner),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (_CONVOLVED, partial(_convolved, "boi", patches))),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        (_TRANSPOSED, partial(_convolved, "bio", transposed_patches)),
    ),
}
"""For each function the names that PyTorch gives its positional arguments, and what it makes of an operand."""


def grouped_mm(
    mat_a: Tensor, mat_b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.nn.functional.grouped_mm`` as one product for each group: group n ends at ``offs[n]`` of the axis that is cut."""
    if offs is None:
        result = mat_a @ mat_b
    else:
        groups = list(pairwise([0, *cast("list[int]", offs.tolist())]))
        if mat_a.ndim == 2 and mat_b.ndim == 3:
            parts = [mat_a[start:stop] @ mat_b[n] for n, (start, stop) in enumerate(groups)]
            result = torch.cat([*parts, mat_a.new_zeros(len(mat_a) - groups[-1][1], mat_b.shape[-1])])
        elif mat_a.ndim == 3:
            parts = [mat_a[n] @ mat_b[:, start:stop] for n, (start, stop) in enumerate(groups)]
            result = torch.cat([*parts, mat_b.new_zeros(mat_a.shape[1], mat_b.shape[1] - groups[-1][1])], 1)
        else:
            result = torch.stack([mat_a[:, start:stop] @ mat_b[start:stop] for start, stop in groups])
    result = result if bias is None else result + bias
    return result if out_dtype is None else result.to(out_dtype)


STAND_INS: Mapping[Any, Callable[..., Tensor]] = {
    func: grouped_mm
    for module, name in ((functional, "grouped_mm"), (torch, "_grouped_mm"))
    if (func := getattr(module, name, None)) is not None  # releases of PyTorch differ in which they have
}
"""Functions that run several products as one operation, each with one that computes the same by products of its own."""

LOOKUPS = frozenset({functional.embedding, functional.embedding_bag})
"""Functions that read rows of a weight as they are: nothing multiplies it."""

LAYERS = frozenset(func for func, (names, _) in PRODUCTS.items() if names is not None and "weight" in names)
"""Products one of whose arguments is a layer's weight by its name, whatever the other one is."""

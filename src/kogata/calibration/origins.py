"""Where a tensor that a forward multiplies comes from: which weight, and by which views and functions of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from kogata.network.nesting import leaves, mapped
from kogata.network.operations import STAND_INS
from kogata.network.placement import same_storage

ENTRYWISE = frozenset({
    "abs", "add", "addcdiv", "addcmul", "batch_norm", "bfloat16", "bitwise_not", "clamp", "clamp_max", "clamp_min", "clip",
    "clone", "contiguous", "cpu", "cuda", "detach", "div", "divide", "double", "exp", "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine", "float", "floordiv", "group_norm", "half", "hardtanh", "iadd", "idiv", "imul",
    "instance_norm", "isub", "itruediv", "layer_norm", "log", "masked_fill", "maximum", "minimum", "mul", "multiply",
    "nan_to_num", "neg", "negative", "pow", "pos", "radd", "rmul", "round", "rsub", "rtruediv", "sigmoid",
    "sign", "softplus", "sqrt", "square", "sub", "subtract", "tanh", "to", "tril", "triu", "true_divide", "truediv",
    "type", "type_as", "weight_norm", "where",
})  # fmt: skip
"""Names of functions whose result has each entry where the operand has it, without the underscores about them."""


ADDED = frozenset({"add", "iadd", "isub", "neg", "negative", "radd", "rsub", "sub", "subtract"})
SCALED = frozenset({
    "addcdiv", "addcmul", "div", "divide", "idiv", "imul", "itruediv", "masked_fill", "mul", "multiply", "rmul",
    "rtruediv", "tril", "triu", "true_divide", "truediv", "where",
})  # fmt: skip
LINEAR = ADDED | SCALED
"""Those of them that are linear in a weight, where the rest of the arguments does not depend on it; factors by ``SCALED``."""

CHOICES = frozenset({Tensor.__getitem__, Tensor.index_select, torch.index_select})
"""Functions that may choose matrices of a stack."""

REARRANGED = "the forward rearranges it in a way that cannot be followed"
MIXED = "the forward adds or multiplies several of its entries into one, so that no one Gram matrix describes its inputs"
JOINED = "the forward makes another weight of it"
WRITTEN = "the forward writes it into another tensor, or something into it"
VMAP = "torch.vmap takes it apart"


class Origin:
    """Where a tensor comes from: the weight of this ``name``, or a call of which all tensors come from it and from constants.

    ``shadow`` is a meta tensor of the tensor's shape with strides and offset as it lies in the weight; None where its entries
    are no entries of the weight, such as a mean, or of more than one weight; ``lost`` is the reason then. Other weights that
    the call takes count as constants; ``names`` has these too. ``item`` is the tensor's place among the call's outputs.
    ``scaled`` says whether the entries may have got factors, ``viewed`` whether the call only made a view.
    Where the data choose among matrices, as ``e`` of shape ``[N]`` does in ``w[e]``, ``chosen`` is ``e``, and the shadow has
    the first matrix N times.
    No dataclass: as an argument of a call it is one leaf.
    """

    def __init__(
        self, name: str, shadow: Tensor | None, func: Callable[..., Any] | None = None, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, item: int | None = None, *, lost: str = REARRANGED, viewed: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.shadow, self.func, self.args, self.kwargs, self.item = name, shadow, func, args, kwargs or {}, item
        self.lost, self.viewed = lost, viewed
        sources = self.operands()
        self.names = {name}.union(*(part.names for part in sources))
        whole = [part for part in sources if part.shadow is not None and part.name == name]
        self.chosen: Tensor | None = next((part.chosen for part in whole if part.chosen is not None), None)
        self.scaled = any(part.scaled for part in whole)
        if not viewed:
            self.scaled |= name_of(func) in SCALED or (len(whole) > 1 and name_of(func) in ADDED)

    @classmethod
    def kept(cls, name: str, tensor: Tensor, lost: str) -> Origin:
        """That of a tensor which cannot be computed anew, and why."""
        return cls(name, None, lambda part: part, (tensor,), lost=lost)

    def operands(self) -> list[Origin]:
        """The origins among the arguments of the call."""
        return [part for part in leaves((self.args, self.kwargs)) if isinstance(part, Origin)]

    def value(self, weight: Callable[[str], Tensor]) -> Tensor:
        """The tensor computed anew from what the weights are now."""
        if self.func is None:
            return weight(self.name)
        return self.again(lambda part: part.value(weight))

    def again(self, value: Callable[[Origin], Tensor]) -> Tensor:
        """What the call gives where the origins among its arguments have other values."""
        args, kwargs = mapped(lambda part: value(part) if isinstance(part, Origin) else part, (self.args, self.kwargs))
        result = cast("Callable[..., Any]", self.func)(*args, **kwargs)
        return result if self.item is None else result[self.item]


def name_of(func: Any) -> str:
    """The name of a function without the underscores about it."""
    return getattr(func, "__name__", "").strip("_")


def derived(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor], *, single: bool
) -> list[Origin]:
    """The origin of each output of a call, whose arguments hold an :class:`Origin` in the place of what comes from weights.

    ``single`` says whether the one output is the result itself. An output is the same view of the operand's shadow, or has the
    operand's own after a function entry by entry.
    """
    sources = [part for part in leaves((args, kwargs)) if isinstance(part, Origin)]
    whole = [part for part in sources if part.shadow is not None]
    views = _views(func, args, kwargs) if whole and name_of(func) not in ENTRYWISE else []
    found: list[Origin] = []
    for n, output in enumerate(outputs):
        item = None if single else n
        view = views[n] if len(views) == len(outputs) else None
        name = None if view is None or view.shape != output.shape else _viewed(view, whole)
        if name is not None:
            found.append(Origin(name, view, func, args, kwargs, item, viewed=True))
            continue
        name, shadow, lost = _entrywise(func, output, whole) if whole else (None, None, sources[0].lost)
        found.append(Origin(name or sources[0].name, shadow, func, args, kwargs, item, lost=lost))
    return found


def gathered(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Origin | None:
    """The origin of matrices ``w[e]`` that the data choose, one for each of ``[N]`` numbers; None for other calls."""
    known = dict(zip(("input", "dim", "index"), args, strict=False)) | dict(kwargs)
    index = args[1] if func is Tensor.__getitem__ else known.get("index") if known.get("dim") == 0 else None
    source = known.get("input")
    if not isinstance(index, Tensor) or not isinstance(source, Origin) or source.shadow is None or source.chosen is not None:
        return None
    if index.ndim != 1 or index.dtype not in (torch.int32, torch.int64) or source.shadow.ndim < 3:
        return None
    first = source.shadow[0]
    shadow = first.as_strided((len(index), *first.shape), (0, *first.stride()), first.storage_offset())
    origin = Origin(source.name, shadow, func, args, kwargs, viewed=True)
    origin.chosen = index % len(source.shadow)
    return origin


def _views(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a function makes of the shadows of its arguments."""

    def shadow(part: Any) -> Any:
        if isinstance(part, Origin):
            return part.shadow if part.shadow is not None else torch.empty((), device="meta")
        return part.to("meta") if isinstance(part, Tensor) else part

    try:
        args, kwargs = mapped(shadow, (args, kwargs))
        return tensors_in(func(*args, **kwargs))
    except Exception:  # of whatever a function that is no view makes of tensors without numbers
        return []


def _viewed(view: Tensor, whole: Sequence[Origin]) -> str | None:
    """The weight of which a tensor is a view."""
    return next((part.name for part in whole if part.shadow is not None and same_storage(view, part.shadow)), None)


def _entrywise(func: Any, output: Tensor, whole: Sequence[Origin]) -> tuple[str | None, Tensor | None, str]:
    """The name and shadow of the operand that has an output's entries where the output has them, or why there is none."""
    if name_of(func) not in ENTRYWISE:
        return None, None, REARRANGED
    same = [part for part in whole if part.shadow is not None and part.shadow.shape == output.shape]
    if len({part.name for part in same}) != 1:
        return None, None, JOINED if same else REARRANGED
    first = same[0]
    own = [part.shadow for part in whole if part.name == first.name and part.shadow is not None]
    if len({(part.shape, part.stride(), part.storage_offset()) for part in own}) > 1:
        return first.name, None, MIXED
    return first.name, first.shadow, REARRANGED


@lru_cache(maxsize=64)
def opened(func: Any) -> Callable[..., Any] | None:
    """A function that computes the same and shows the operations within it to a mode; None where there is none.

    It is a stand-in, or a Python function of PyTorch without what makes a mode see it as one operation.
    """
    if func in STAND_INS:
        return STAND_INS[func]
    if not isinstance(func, types.FunctionType) or not func.__module__.startswith("torch"):
        return None
    hidden = {name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")}
    return types.FunctionType(
        func.__code__, func.__globals__ | hidden, func.__name__, func.__defaults__, func.__closure__
    )  # fmt: skip


def tensors_in(*values: Any) -> list[Tensor]:
    """Every tensor of nested arguments."""
    return [part for part in leaves(values) if isinstance(part, Tensor)]


def storage(tensor: Tensor) -> int:
    """The memory that a tensor shares with its views; 0 for tensors without any of their own."""
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - no public way
    except (NotImplementedError, RuntimeError):
        return 0


def version(tensor: Tensor) -> int:
    """How often a tensor has been written to; 0 where PyTorch does not count, as in inference mode."""
    try:
        return tensor._version
    except RuntimeError:
        return 0

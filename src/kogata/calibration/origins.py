"""Where a tensor that a forward multiplies comes from: which weight, and by which views and functions of it."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kogata.network.nesting import leaves, mapped
from kogata.network.operations import STAND_INS
from kogata.network.placement import same_storage

ENTRYWISE = frozenset({
    "abs", "add", "addcdiv", "addcmul", "batch_norm", "bfloat16", "bitwise_not", "clamp", "clamp_max", "clamp_min", "clip",
    "clone", "contiguous", "cpu", "cuda", "detach", "div", "divide", "double", "exp", "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine", "float", "floordiv", "get", "group_norm", "half", "hardtanh", "iadd", "idiv", "imul",
    "instance_norm", "isub", "itruediv", "layer_norm", "log", "masked_fill", "maximum", "minimum", "mul", "multiply",
    "nan_to_num", "neg", "negative", "normalize", "pow", "pos", "radd", "rmul", "round", "rsub", "rtruediv", "sigmoid",
    "sign", "softplus", "sqrt", "square", "sub", "subtract", "tanh", "to", "true_divide", "truediv", "type", "type_as",
    "weight_norm", "where",
})  # fmt: skip
"""Names of functions whose result has each entry where the operand has it, without the underscores about them."""


class Origin:
    """Where a tensor comes from: the weight of this ``name``, or a call of which all tensors come from it and from constants.

    ``shadow`` is a meta tensor of the tensor's shape with strides and offset as it lies in the weight; None where its entries
    are no entries of the weight, such as a mean, or of more than one weight. ``item`` is its place among the call's outputs.
    No dataclass: as an argument of a call it is one leaf.
    """

    def __init__(
        self, name: str, shadow: Tensor | None, func: Callable[..., Any] | None = None, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, item: int | None = None,
    ) -> None:  # fmt: skip
        self.name, self.shadow, self.func, self.args, self.kwargs, self.item = name, shadow, func, args, kwargs or {}, item

    def value(self, weight: Callable[[str], Tensor]) -> Tensor:
        """The tensor computed anew from what the weights are now."""
        if self.func is None:
            return weight(self.name)
        now = mapped(lambda part: part.value(weight) if isinstance(part, Origin) else part, (self.args, self.kwargs))
        result = self.func(*now[0], **now[1])
        return result if self.item is None else result[self.item]


def shadows(func: Any, recipe: Any, sources: Sequence[Origin], outputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The shadow of each output: the same view of the operand's, or the operand's own after a function entry by entry."""
    whole = [origin.shadow for origin in sources if origin.shadow is not None]
    if not whole:
        return [None] * len(outputs)

    def shadow(part: Any) -> Any:
        if isinstance(part, Origin):
            return part.shadow if part.shadow is not None else torch.empty((), device="meta")
        return part.to("meta") if isinstance(part, Tensor) else part

    try:
        args, kwargs = mapped(shadow, recipe)
        views = tensors_in(func(*args, **kwargs))
    except Exception:  # of whatever a function that is no view makes of tensors without numbers
        views = []
    entrywise = getattr(func, "__name__", "").strip("_") in ENTRYWISE
    same = {tuple(part.shape): part for part in reversed(whole)} if entrywise else {}
    found: list[Tensor | None] = []
    for n, output in enumerate(outputs):
        view = views[n] if len(views) == len(outputs) else None
        seen = view is not None and view.shape == output.shape and any(same_storage(view, part) for part in whole)
        found.append(view if seen else same.get(tuple(output.shape)))
    return found


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

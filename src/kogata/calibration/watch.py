"""Watch the operations of a model that multiply its weights, in whatever layer and however the forward is written.

A ``torch.overrides.TorchFunctionMode`` sees every operation of a forward. A weight is known by its identity, or, where a form
holds it, as what the form has just computed. What operations make of weights and constants alone (a view, a transpose, one of
three chunks, a standardized weight) is known as derived, and how: an operation that multiplies it is shown as a use of the
weight, and runs with what the weight has become in the meantime.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kogata.calibration.factors import factors, weighed
from kogata.calibration.origins import (
    CHOICES,
    JOINED,
    VMAP,
    WRITTEN,
    Origin,
    derived,
    gathered,
    opened,
    storage,
    tensors_in,
    version,
)
from kogata.calibration.recurrent import RECURRENT, recurrent_uses
from kogata.forms import Separate, Transposed
from kogata.job import Kind, Layout, Seen, Site
from kogata.network.batch import call
from kogata.network.input_rows import within_vmap
from kogata.network.nesting import leaves, mapped
from kogata.network.operations import LAYERS, LOOKUPS, Use, use_of
from kogata.network.placement import Axis, Placement, is_plain, placed
from kogata.network.sites import form_at, form_of

Reach = Callable[[str, Callable[[], None]], None]
"""Called with a name and a function that looks at the inputs, where a forward reaches a weight or layer of that name."""

Visit = Callable[[str, Placement], None]
"""Looks at one use of the weight of that name."""


class Watch:
    """The weights of ``sites`` in ``model``. Runs its forwards, and shows each use of a weight to ``visit``.

    ``layouts`` and ``kinds`` are those of the weights that have been multiplied so far.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], visit: Visit) -> None:
        self.model, self.sites, self.visit = model, {site.name: site for site in sites}, visit
        self.layouts: dict[str, Layout] = {}
        self.kinds: dict[str, Kind] = {}
        self.others: dict[str, str] = {}  # what else is done with a weight
        self.called: set[str] = set()  # weights of modules that have been called
        self.refused: dict[str, str] = {}  # why the uses of a weight cannot all enter into its statistics
        self.reach: Reach = lambda name, look: look()
        self.result: Callable[[str, Placement, Tensor], None] | None = None
        self._here = local()
        self._owners = {site.name: (model.get_submodule(site.module), site.parameter) for site in sites}
        self._holders = {name: self._holder(name) for name in self.sites}
        self._placements: dict[tuple[Any, ...], tuple[Layout, tuple[Axis, ...]] | None] = {}
        self.roots = {s.name: Origin(s.name, torch.empty(s.shape, device="meta")) for s in sites}
        self._plain: dict[int, str] = {id(held): name for name, held in self._holders.items() if isinstance(held, nn.Parameter)}
        fixed = [*model.parameters(), *model.buffers()]
        self.fixed = {id(tensor): tensor for tensor in fixed}

    def run(self, inputs: Any) -> Any:
        """One forward of the model on a batch's inputs, watched."""
        with _Mode(self) as mode:
            self._here.mode = mode
            try:
                return call(self.model, inputs)
            finally:
                del self._here.mode

    def seen(self) -> dict[str, Seen]:
        """What the uses so far showed of each weight."""
        found: dict[str, Seen] = {}
        for name, layout in self.layouts.items():
            plain = is_plain(layout, self.sites[name].shape)
            found[name] = Seen(self.kinds[name], None if plain else layout)
        return found

    @contextmanager
    def listening(self, reach: Reach) -> Generator[None, None, None]:
        """Let ``reach`` know of every use, and forms say what they compute. Compiled code runs as it is written meanwhile."""
        self.reach = reach
        held = [(name, form) for name, form in self._holders.items() if not isinstance(form, nn.Parameter)]
        handles = [form.register_forward_hook(self._mark(name)) for name, form in held]
        for name, (module, _) in self._owners.items():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.called.add(name)))
        compiled = "torch._dynamo" in sys.modules  # importing it takes seconds, and without it nothing is compiled
        try:
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def name_of(self, tensor: Tensor) -> str | None:
        """The weight that a plain parameter is."""
        name = self._plain.get(id(tensor))
        return name if name is not None and self._holders[name] is tensor else None

    def weight(self, name: str) -> Tensor:
        """What the weight is now."""
        module, parameter = self._owners[name]
        return cast("Tensor", getattr(module, parameter))

    def replaced(self, name: str) -> bool:
        """Whether the weight has been replaced since."""
        return self._holder(name) is not self._holders[name]

    def used(self, name: str, use: Use, origin: Origin) -> Placement | None:
        """Note a use; None where it cannot be placed in the weight."""
        for other in origin.names - {name}:
            self.others.setdefault(other, JOINED)
        found = None if origin.shadow is None else self._placement(name, use, origin.shadow)
        if found is not None and origin.shadow is not None and origin.chosen is not None:
            found = found.choosing(origin.chosen, origin.shadow)
        if found is None:
            self.refused.setdefault(name, origin.lost)
            return None
        if self.layouts.setdefault(name, found.layout) != found.layout:
            self.refused.setdefault(name, "the forward multiplies it in two ways that do not go together")
            return None
        self.kinds.setdefault(name, use.kind)
        factor = factors(origin, self.weight)
        if factor is None:
            return found
        whole = weighed(use, factor)
        if whole is None:
            reason = "the forward masks or scales its entries one by one, so that no one Gram matrix describes its inputs"
            self.refused.setdefault(name, reason)
        return replace(found, use=whole or use)

    def show(self, name: str, found: Placement) -> None:
        """Show a use, outside of an inference mode, whose tensors could not be summed up later."""

        def look() -> None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self.visit(name, found)

        self.reach(name, look)

    def fits(self, name: str) -> bool:
        """Whether the leaves of the weight are the matrices that are multiplied; notes the reason where they are not."""
        if name in self.refused:
            return False
        site = self.sites[name]
        if is_plain(self.layouts[name], site.shape) != isinstance(form_at(self.model, site), Separate | Transposed):
            return True
        self.refused[name] = "its matrices do not lie in it as the form that holds it takes them"
        return False

    def unseen(self, name: str) -> str:
        """Why the inputs of a weight could not be seen."""
        if name in self.refused or name in self.others:
            return self.refused.get(name) or self.others[name]
        if name in self.called:
            return "its layer is called, but nothing that PyTorch lets one watch multiplies it"
        return "no calibration batch calls its layer"

    def _placement(self, name: str, use: Use, shadow: Tensor) -> Placement | None:
        """The placement of a use, found once for all uses that are alike."""
        key = (name, use.kind, use.roles, use.view, shadow.shape, shadow.stride(), shadow.storage_offset())
        if key not in self._placements:
            first = placed(use, shadow, self.sites[name].shape)
            self._placements[key] = None if first is None else (first.layout, first.axes)  # without the inputs of its use
        found = self._placements[key]
        return None if found is None else Placement(use, *found)

    def _holder(self, name: str) -> nn.Module | nn.Parameter:
        module, parameter = self._owners[name]
        return form_of(module, parameter) or cast("nn.Parameter", getattr(module, parameter))

    def _mark(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def mark(_: nn.Module, __: Any, output: Tensor) -> None:
            mode = cast("_Mode | None", getattr(self._here, "mode", None))
            if mode is not None:
                mode.know(output, self.roots[name])

        return mark


class _AgainError(Exception):
    """Raised in a function that has used a weight before it was replaced."""


class _Mode(TorchFunctionMode):
    """One forward, in one thread."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self._known: dict[int, tuple[weakref.ref[Tensor], Origin | None, int]] = {}  # None: a constant
        self._written: dict[int, tuple[int, Origin | None]] = {}  # storages, how often, and what last; None: what flows
        self._used: Counter[str] | None = None  # weights used in the function of PyTorch that is being looked into

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_in(args, kwargs)
        found = [self._source(tensor) for tensor in given]
        origins = [origin for origin, _ in found]
        if func in LOOKUPS:
            return func(*args, **kwargs)  # of the weight as it was: what is read here is no input of it
        before = [version(tensor) for tensor in given]
        if not any(origins):
            result = func(*args, **kwargs)
            if all(known for _, known in found):
                for part in tensors_in(result):
                    self.know(part, None)
                return result
        elif all(known for _, known in found) and not self._layer(func, args, kwargs, given, origins):
            return self._derived(func, args, kwargs, before)
        elif func in RECURRENT:
            args, kwargs = self._recurrent(func, args, kwargs)
            result = func(*args, **kwargs)
        elif func in CHOICES and (chosen := gathered(func, *self._recipe(args, kwargs))) is not None:
            result = func(*args, **kwargs)
            self.know(result, chosen)
            return result
        else:
            result = self._multiplied(func, args, kwargs, given, origins)
        for tensor, count in zip(given, before, strict=True):
            if version(tensor) != count:
                self._write(tensor, None)
        return result

    def know(self, tensor: Tensor, origin: Origin | None) -> None:
        """Remember where a tensor comes from, as long as it lives and nothing else is written to its memory."""
        self._known[id(tensor)] = (weakref.ref(tensor), origin, self._written.get(storage(tensor), (0, None))[0])

    def _write(self, tensor: Tensor, origin: Origin | None) -> None:
        """Note that what a tensor and all views of it hold is something else now."""
        self._written[storage(tensor)] = (self._written.get(storage(tensor), (0, None))[0] + 1, origin)

    def _source(self, tensor: Tensor) -> tuple[Origin | None, bool]:
        """The origin of what comes from weights, and whether a tensor comes from weights and constants alone."""
        found = self._known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            _, origin, count = found
        elif (name := self._watch.name_of(tensor)) is not None:
            origin, count = self._watch.roots[name], 0
        elif self._watch.fixed.get(id(tensor)) is tensor:
            origin, count = None, 0
        elif (inside := within_vmap(tensor)) is not None:
            origin, known = self._source(inside)
            return (None if origin is None else Origin.kept(origin.name, tensor, VMAP)), known
        else:
            return None, False
        written, last = self._written.get(storage(tensor), (0, None)) if self._written else (0, None)
        if written == count:
            return origin, True
        return (None, False) if last is None else (Origin.kept(last.name, tensor, WRITTEN), True)

    def _origin(self, tensor: Tensor) -> Origin | None:
        return self._source(tensor)[0]

    def _recipe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a call with origins in the place of what comes from weights."""
        return mapped(lambda part: (self._origin(part) or part) if isinstance(part, Tensor) else part, (args, kwargs))

    def _layer(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Tensor],
        origins: Sequence[Origin | None],
    ) -> bool:  # fmt: skip
        """Whether a call is one of a layer whose inputs are constants, such as learned queries, and makes no other weight."""
        pairs = zip(given, origins, strict=True)
        return func in LAYERS and any(o is not None and use_of(func, tensor, args, kwargs) is not None for tensor, o in pairs)

    def _derived(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], before: Sequence[int]) -> Any:
        """Run a call of weights and constants, and remember its results by it, and what it has written to other tensors."""
        recipe = self._recipe(args, kwargs)
        result = func(*args, **kwargs)
        outputs = tensors_in(result)
        found = derived(func, recipe[0], recipe[1], outputs, single=isinstance(result, Tensor))
        if outputs and all(origin.shadow is None for origin in found) and (inner := opened(func)) is not None:
            return self._within(inner, args, kwargs)
        source = next(part for part in leaves(recipe) if isinstance(part, Origin))
        for tensor, count in zip(tensors_in(args, kwargs), before, strict=True):
            if version(tensor) != count:
                self._write(tensor, source)
        for tensor, origin in zip(outputs, found, strict=True):
            self.know(tensor, origin)
        return result

    def _multiplied(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[Tensor],
        origins: Sequence[Origin | None],
    ) -> Any:  # fmt: skip
        """Run a call that takes weights and what flows, having shown the use that it makes of each weight."""
        now: dict[int, Tensor] = {}
        inner, waits = None, list[tuple[str, Tensor, Origin, Placement]]()
        for tensor, origin in zip(given, origins, strict=True):
            if origin is None:
                continue
            use = use_of(func, tensor, args, kwargs)
            if use is None:
                inner = inner or opened(func)
                if inner is None:
                    name = getattr(func, "__name__", str(func))
                    self._watch.others.setdefault(origin.name, f"no matrix product that is known takes it, but {name}() does")
                continue
            found = self._watch.used(origin.name, use, origin)
            if found is not None:
                waits.append((origin.name, tensor, origin, found))
        if inner is not None and not waits:
            return self._within(inner, args, kwargs)
        for name, _, _, found in waits:
            before = self._watch.replaced(name)
            self._watch.show(name, found)
            if self._used is not None:
                if self._used[name] and not before and self._watch.replaced(name):
                    raise _AgainError
                self._used[name] += 1
        for tensor, origin in zip(given, origins, strict=True):
            if origin is not None and any(map(self._watch.replaced, origin.names)):
                now[id(tensor)] = origin.value(self._watch.weight)
        if now:
            args, kwargs = mapped(lambda part: now.get(id(part), part) if isinstance(part, Tensor) else part, (args, kwargs))
        result = func(*args, **kwargs)
        if self._watch.result is not None:
            for name, _, _, found in waits:
                self._watch.result(name, found, result)
        return result

    def _within(self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a function that shows its operations; from the start again where a weight it has used is replaced in it.

        An attention multiplies its joint projection once for the queries, once for the keys and once for the values.
        """
        while True:
            outer, self._used = self._used, Counter()
            try:
                with self:
                    return inner(*args, **kwargs)
            except _AgainError:
                continue
            finally:
                self._used = outer

    def _recurrent(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of a recurrent layer with what its weights have become, each having been shown in turn."""
        watch = self._watch
        args, kwargs = mapped(lambda part: part, (args, kwargs))  # the layer changes its list as weights are replaced
        origins = {id(tensor): origin for tensor in tensors_in(args, kwargs) if (origin := self._origin(tensor)) is not None}

        def current(tensor: Tensor) -> Tensor:
            origin = origins.get(id(tensor))
            return tensor if origin is None or not any(map(watch.replaced, origin.names)) else origin.value(watch.weight)

        for tensor, use in recurrent_uses(func, args, kwargs, current):
            origin = origins.get(id(tensor))
            if origin is not None and (found := watch.used(origin.name, use, origin)) is not None:
                watch.show(origin.name, found)
        return mapped(lambda part: current(part) if isinstance(part, Tensor) else part, (args, kwargs))

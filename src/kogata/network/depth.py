"""Lists that lost layers: which entries of an ``nn.ModuleList`` or ``nn.Sequential`` remain, and how another is cut to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn

Layers = nn.ModuleList | nn.Sequential
KEPT = "kogata_kept"  # on a list that lost entries: the places of those that remain in the original list


def lists(model: nn.Module) -> Iterator[tuple[str, Layers]]:
    """Every list of layers with its path, outer ones first; none inside forms."""
    for path, module in model.named_modules():
        if isinstance(module, Layers) and "parametrizations" not in path.split("."):
            yield path, module


def places(layers: Layers) -> tuple[int, ...]:
    """For each entry of a list its place in the original one."""
    return cast("tuple[int, ...]", layers.__dict__.get(KEPT, tuple(range(len(layers)))))


def shortened(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The places that remain in each list that lost entries, by the path it has now; outer lists come first."""
    return {path: places(layers) for path, layers in lists(model) if KEPT in layers.__dict__}


def origin(path: str, model: nn.Module, before: nn.Module) -> str:
    """The path in ``before`` of the module at ``path`` of ``model``, whose lists may have lost entries since."""
    names = list[str]()
    for name in path.split(".") if path else []:
        found = name
        if isinstance(model, Layers) and isinstance(before, Layers) and places(model) != places(before):
            place = dict(zip((child for child, _ in model.named_children()), places(model), strict=True))[name]
            found = dict(zip(places(before), (child for child, _ in before.named_children()), strict=True))[place]
        names.append(found)
        model, before = model.get_submodule(name), before.get_submodule(found)
    return ".".join(names)


def keep(model: nn.Module, path: str, kept: Sequence[int]) -> None:
    """Shorten the list at ``path``, in ``model`` itself, to the entries whose places in the original list are ``kept``.

    The entries of a ModuleList are numbered anew; those of a Sequential keep their names. Raises ValueError, with the reason,
    when there is no such list or it lacks such entries.
    """
    layers = dict(lists(model)).get(path)
    if layers is None:
        raise ValueError(f"it has no list of layers {path!r}")
    now, wanted = places(layers), tuple(kept)
    if not wanted or any(type(place) is not int or place not in now for place in wanted) or sorted(set(wanted)) != list(wanted):
        raise ValueError(f"of its list {path!r} the entries {list(wanted)} should remain, which holds {list(now)}")
    if wanted == now:
        return
    entries = dict(zip(now, list(layers.named_children()), strict=True))
    for name, _ in entries.values():
        delattr(layers, name)
    for number, place in enumerate(wanted):
        name, entry = entries[place]
        layers.add_module(str(number) if isinstance(layers, nn.ModuleList) else name, entry)
    setattr(layers, KEPT, wanted)

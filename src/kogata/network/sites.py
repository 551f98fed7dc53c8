"""Find the weights of a model that forms can hold, and the forms that hold them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import cast

from torch import Tensor, nn

from kogata.errors import UsageError
from kogata.forms import Dense, Form, Masked, Role
from kogata.forms.stored import apart
from kogata.job import Job, Kind, Site, Where
from kogata.network.layers import LISTS, kind_of
from kogata.network.placement import is_plain
from kogata.network.sharing import overlaps, place_of


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in what ``torch.compile``, ``nn.DataParallel`` or its distributed kin put around it: its names have no prefix.

    >>> list(unwrapped(nn.DataParallel(nn.Linear(2, 2))).state_dict())
    ['weight', 'bias']
    """
    while True:
        inner = model.__dict__.get("_modules", {}).get("_orig_mod")  # of torch.compile, whose import takes seconds
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything persistent that is not a site: running means, integer tables, parameters of lists and of other libraries."""
    sites = {name for site in sites_of(model) for name in (site.name, *site.aliases)}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if _within_form(model, path):
            continue
        hidden = module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage] - PyTorch has no public way
        own = {name: tensor for name, tensor in module.named_buffers(recurse=False) if name not in hidden}
        for name, tensor in (own | dict(module.named_parameters(recurse=False))).items():
            if (full := f"{path}.{name}" if path else name) not in sites:
                found[full] = tensor
    return found


def left_alone(model: nn.Module) -> dict[str, str]:
    """Each float parameter that no form can take over, with the reason."""
    found: dict[str, str] = {}
    for path, module in modules_of(model):
        prefix = f"{path}." if path else ""
        if isinstance(module, LISTS):
            reason = f"it is a parameter of a {type(module).__name__}, which is left as it is"
            found |= {f"{prefix}{n}": reason for n, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        for name, held in parametrizations(module).items():
            first = cast("nn.ModuleList", held)[0]
            if not isinstance(first, Form):
                found[f"{prefix}{name}"] = f"a parametrization of another library holds it ({type(first).__name__})"
    return found | {name: f"it shares memory with {other}, which no form could follow" for name, other in _bound(model).items()}


def sites_of(model: nn.Module) -> tuple[Site, ...]:
    """Every parameter a form can take over (or has taken over), in the order of the model's modules."""
    names: dict[Hashable, list[tuple[str, nn.Module, str]]] = {}
    bound = _bound(model)
    for path, module in modules_of(model):
        if isinstance(module, LISTS):
            continue
        for name, held in weights_of(module):
            if (f"{path}.{name}" if path else name) not in bound:
                key = id(held) if isinstance(held, Form) else place_of(held)
                names.setdefault(key, []).append((path, module, name))
    found: list[Site] = []
    for owners in names.values():
        (path, module, name), others = owners[0], owners[1:]
        held = form_of(module, name)
        shape = held.shape if held is not None else cast("Tensor", getattr(module, name)).shape
        matrix = len(shape) >= 2
        kind = kind_of(module).kind if matrix else Kind.OTHER
        aliases = tuple(f"{p}.{n}" if p else n for p, _, n in others)
        found.append(Site(path, name, tuple(shape), kind, Role.MATRIX if matrix else Role.VECTOR, aliases))
    return tuple(found)


def _bound(model: nn.Module) -> dict[str, str]:
    """Each float parameter whose memory another tensor of the model uses in a way that no form can follow, and that tensor.

    Parameters of the same memory and shape are tied, and one form takes over all of them.
    """
    weights: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for path, module in modules_of(model):
        prefix = f"{path}." if path else ""
        own = {} if isinstance(module, LISTS) else {n: p for n, p in weights_of(module) if isinstance(p, Tensor)}
        weights |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
        rest = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        others |= {f"{prefix}{name}": tensor for name, tensor in rest.items() if name not in own}
    places = {place_of(tensor): name for name, tensor in others.items() if tensor.numel()}
    found = {name: places[place] for name, tensor in weights.items() if (place := place_of(tensor)) in places}
    part = overlaps((weights | others).items())
    return found | {name: other for name, other in part.items() if name in weights}


def known_sites(job: Job) -> tuple[Site, ...]:
    """All sites of a job's model with what its layers tell and the calibration data showed of how their matrices lie."""
    return tuple(_known(job, site) if site.role is Role.MATRIX else site for site in sites_of(job.model))


def _known(job: Job, site: Site) -> Site:
    module = job.model.get_submodule(site.module)
    seen = job.seen.get(site.name)
    layout = kind_of(module).layout(module, site.parameter) if site.shape else None
    if seen is not None and seen.layout is not None and math.prod(seen.layout.view) == math.prod(site.shape):
        layout = seen.layout
    if layout is not None and is_plain(layout, site.shape):
        layout = None
    kind = seen.kind if seen is not None and site.kind is Kind.OTHER else site.kind
    return dataclasses.replace(site, layout=layout, kind=kind)


def selected_sites(job: Job) -> tuple[Site, ...]:
    """The sites that all restrictions of the job allow; matrices, unless a restriction asks for vectors.

    Raises UsageError when a restriction matches no site of the model, unless it asks for all vectors: a model may have none.
    """
    chosen = known_sites(job)
    for where in job.where:
        hits = [site for site in chosen if site.kind in where.kinds and any(where.wants(*names) for names in _names(site))]
        wanted = [site for site in hits if (site.role is Role.VECTOR) == where.vectors]
        if not wanted and where != Where(vectors=True):
            asked = "biases and normalization vectors" if where.vectors else "weights"
            known = ", ".join(site.name for site in chosen if (site.role is Role.VECTOR) == where.vectors) or "none"
            raise UsageError(
                f"where: layers {list(where.layers)} without {list(where.ignore)}, kinds {[str(k) for k in where.kinds]} "
                f"match none of the {asked} of this model. It has: {known}."
            )
        chosen = tuple(wanted)
    return chosen if job.where else tuple(site for site in chosen if site.role is Role.MATRIX)


def _names(site: Site) -> Iterator[tuple[str, str]]:
    """The qualified name and the module's path of each owner of the parameter."""
    for name in (site.name, *site.aliases):
        yield name, name.rpartition(".")[0]


def form_of(module: nn.Module, name: str) -> Form | None:
    """The form that holds ``module.name``, or None when it is a plain parameter or another library's."""
    if name not in (lists := parametrizations(module)):
        return None
    form = cast("nn.ModuleList", lists[name])[0]
    return form if isinstance(form, Form) else None


def parametrizations(module: nn.Module) -> Mapping[str, nn.Module]:
    """The parametrizations of the module's own parameters, by the parameter's name; empty where it has none.

    ``torch.nn.utils.parametrize.is_parametrized`` asks for an attribute, which a wrapper that hands unknown attributes on to an
    inner module answers in that module's place.
    """
    found = dict(module.named_children()).get("parametrizations")
    return dict(found.named_children()) if isinstance(found, nn.ModuleDict) else {}


def form_at(model: nn.Module, site: Site) -> Form:
    """The form of a site; a plain parameter counts as one dense leaf, or as one for each of its matrices."""
    module = model.get_submodule(site.module)
    if (held := form_of(module, site.parameter)) is not None:
        return held
    leaf = Dense(cast("nn.Parameter", getattr(module, site.parameter)), site.role)
    return leaf if site.layout is None else apart(leaf, site.layout)


def leaves_of(root: Form, site: Site) -> Iterator[tuple[str, Dense, Site]]:
    """Every leaf with its path, and the site with the shape of the tensor that the leaf stands for.

    The kept values of a mask stand for the masked tensor; every other leaf stands for itself.
    """
    for path, leaf in root.leaves():
        parent = root.get_submodule(path.rpartition(".")[0]) if path else leaf
        shape = parent.shape if isinstance(parent, Masked) else leaf.shape
        yield path, leaf, dataclasses.replace(site, shape=tuple(shape))


def model_bits(model: nn.Module) -> float:
    """Estimated bits to store all parameters, by the entropy of their planes."""
    return sum(form_at(model, site).stored_bits() for site in sites_of(model))


def _within_form(model: nn.Module, path: str) -> bool:
    """Whether a module is a part of a form, or only holds such parts."""
    names = path.split(".")
    if "parametrizations" not in names:
        return False
    at = names.index("parametrizations")
    held = model.get_submodule(".".join(names[: at + 2]))
    return len(names) < at + 2 or isinstance(cast("nn.ModuleList", held)[0], Form)


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every path it is reached by, save those inside forms."""
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in path.split("."):
            yield path, module


def weights_of(module: nn.Module) -> Iterator[tuple[str, Form | Tensor]]:
    """Names of the module's own float parameters, each with the form that holds it, or the plain parameter.

    In the order of the names, so that it does not depend on which parameter got a form first.
    """
    found: dict[str, Form | Tensor] = {n: p for n, p in module.named_parameters(recurse=False) if p.is_floating_point()}
    found |= {name: form for name in parametrizations(module) if (form := form_of(module, name)) is not None}
    yield from sorted(found.items(), key=lambda item: item[0])

"""The only file that attaches, finds and removes forms in a model.

A form takes over a parameter through PyTorch's own ``torch.nn.utils.parametrize``, so any module that reads ``self.weight``
keeps working, and so do ``deepcopy``, ``torch.export`` and ONNX export.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from kogata.errors import DataError, UsageError
from kogata.forms import Dense, Form, Masked, Role
from kogata.job import Job, Kind, Site

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Linear, Kind.LINEAR),
    (nn.modules.conv._ConvNd, Kind.CONV),  # pyright: ignore[reportPrivateUsage] - the only common base, subclasses included
    (nn.Embedding, Kind.EMBEDDING),
    (nn.EmbeddingBag, Kind.EMBEDDING),
)
# These keep their own lists of weights and would go on reading the old ones.
_UNREACHABLE = (nn.RNNBase, nn.ParameterList, nn.ParameterDict)


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every parameter a form can take over (or has taken over), in the order of the model's modules."""
    names: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in _modules(model):
        if isinstance(module, _UNREACHABLE):
            continue
        for name, key in _parameters(module):
            names.setdefault(id(key), []).append((path, module, name))
    found: list[Site] = []
    for owners in names.values():
        (path, module, name), others = owners[0], owners[1:]
        held = form_of(module, name)
        shape = held.shape if held is not None else cast("Tensor", getattr(module, name)).shape
        matrix = len(shape) >= 2
        kind = next((kind for base, kind in _KINDS if isinstance(module, base)), Kind.OTHER) if matrix else Kind.OTHER
        aliases = tuple(f"{p}.{n}" if p else n for p, _, n in others)
        found.append(Site(path, name, tuple(shape), kind, Role.MATRIX if matrix else Role.VECTOR, aliases))
    return tuple(found)


def selected(job: Job) -> tuple[Site, ...]:
    """The sites that all restrictions of the job allow; matrices, unless a restriction asks for vectors.

    Raises UsageError when a glob matches no site of the model.
    """
    chosen = sites(job.model)
    for where in job.where:
        hits = [site for site in chosen if site.kind in where.kinds and any(where.wants(*names) for names in _names(site))]
        wanted = [site for site in hits if (site.role is Role.VECTOR) == where.vectors]
        if not wanted:
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
    """The form that holds ``module.name``, or None when it is a plain parameter."""
    if not parametrize.is_parametrized(module, name):
        return None
    lists = cast("nn.ModuleDict", module.parametrizations)
    form = cast("nn.ModuleList", lists[name])[0]
    if not isinstance(form, Form):
        raise DataError(
            f"surgery: {name!r} of {type(module).__name__} already has a parametrization of another library "
            f"({type(form).__name__}). Remove it first with torch.nn.utils.parametrize.remove_parametrizations."
        )
    return form


def form_at(model: nn.Module, site: Site) -> Form:
    """The form of a site; a plain parameter counts as one dense leaf."""
    module = model.get_submodule(site.module)
    return form_of(module, site.parameter) or Dense(cast("nn.Parameter", getattr(module, site.parameter)), site.role)


def leaves(root: Form, site: Site) -> Iterator[tuple[str, Dense, Site]]:
    """Every leaf with its path, and the site with the shape of the tensor that the leaf stands for.

    The kept values of a mask stand for the masked tensor; every other leaf stands for itself.
    """
    for path, leaf in root.leaves():
        parent = root.get_submodule(path.rpartition(".")[0]) if path else leaf
        shape = parent.shape if isinstance(parent, Masked) else leaf.shape
        yield path, leaf, dataclasses.replace(site, shape=tuple(shape))


def replace(model: nn.Module, site: Site, path: str, form: Form) -> None:
    """Put ``form`` in the place of the leaf, or other part, at ``path`` of the site's tree, in ``model`` itself."""
    root = form_at(model, site)
    _, leaf = next(cast("Form", root.get_submodule(path)).leaves())
    form = form.to(device=leaf.values.device, dtype=leaf.values.dtype)
    if isinstance(form, Dense):
        form.role = leaf.role  # other numbers, but what they are is the same
    attach(model, site, _with(root, path, form))


def _with(root: Form, path: str, form: Form) -> Form:
    """The tree with ``form`` at ``path``, each node above it folded."""
    if not path:
        return form
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    setattr(owner, name, form)
    return _with(root, parent, owner.folded()) if isinstance(owner, Form) else root


def attach(model: nn.Module, site: Site, form: Form) -> None:
    """Let ``form`` hold the parameter of ``site`` and of everything tied to it; another form there gives way.

    A form that is one dense leaf needs no program: its values become a plain parameter.
    """
    for name in (site.name, *site.aliases):
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, parameter):
            parametrize.remove_parametrizations(module, parameter, leave_parametrized=False)
        if isinstance(form, Dense):
            setattr(module, parameter, form.values)
            continue
        # Parametrizing empties the parameter it takes over, in place; other copies of the model share that one. So it
        # gets an empty parameter of its own, which only remembers dtype and device.
        weight = cast("Tensor", getattr(module, parameter))
        setattr(module, parameter, nn.Parameter(weight.new_empty(0), requires_grad=False))
        parametrize.register_parametrization(module, parameter, form, unsafe=True)


def clone(model: nn.Module, *, share: bool = True) -> nn.Module:
    """A copy of the module tree, with the same tensors (``share``) or with tensors of its own.

    Parametrizing changes the class of a module, and ``deepcopy`` hands that class on: each copy gets a class of its own, so
    that a later change of one leaves the other as it is.
    """
    memo: dict[int, Any] = {}
    if share:
        tensors = [*model.parameters(), *model.buffers()]
        memo = {id(tensor): tensor for tensor in tensors}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if parametrize.is_parametrized(module):
            kind = type(module)
            own = {k: v for k, v in kind.__dict__.items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = cast("type[nn.Module]", type(kind.__name__, kind.__bases__, own))
    return twin


def plain(model: nn.Module) -> nn.Module:
    """A copy with every form computed once into a plain dense parameter: no trace of Kogata is left."""
    twin = clone(model)
    computed: dict[int, nn.Parameter] = {}  # by form, so that tied weights stay tied
    for _, module in _modules(twin):
        for name, _ in list(_parameters(module)):
            if (form := form_of(module, name)) is not None:
                if id(form) not in computed:
                    value = cast("Tensor", getattr(module, name)).detach()
                    computed[id(form)] = nn.Parameter(value, requires_grad=False)
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                setattr(module, name, computed[id(form)])
    return twin


def lower(model: nn.Module) -> nn.Module:
    """A plain copy in which every form that has cheaper layers is these layers, and every other form is dense."""
    twin = clone(model)
    for path, module in list(_modules(twin)):
        parent, _, name = path.rpartition(".")
        owner = twin.get_submodule(parent)
        # The fused path of a transformer layer reads the weights of its linear layers past their forward.
        if isinstance(owner, nn.TransformerEncoderLayer):
            continue
        form = form_of(module, "weight")
        cheaper = form.lower(module) if form is not None else None
        if cheaper is None:
            continue
        if not path:
            return plain(cheaper.train(module.training))
        setattr(owner, name, cheaper.train(module.training))
    return plain(twin)


def bits(model: nn.Module) -> float:
    """Estimated bits to store all parameters, by the entropy of their planes."""
    return sum(form_at(model, site).stored_bits() for site in sites(model))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every path it is reached by, save those inside forms."""
    for path, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in path.split("."):
            yield path, module


def _parameters(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Names of the module's own float parameters, each with the object that tells tied ones: the form or the parameter.

    In the order of the names, so that it does not depend on which parameter got a form first.
    """
    found: dict[str, object] = {n: p for n, p in module.named_parameters(recurse=False) if p.is_floating_point()}
    if parametrize.is_parametrized(module):
        names = cast("nn.ModuleDict", module.parametrizations)
        found |= {name: form for name in names if (form := form_of(module, name)) is not None}
    yield from sorted(found.items(), key=lambda item: item[0])

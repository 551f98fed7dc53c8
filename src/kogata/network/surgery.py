"""The only file that attaches, finds and removes forms in a model.

A form takes over a parameter through PyTorch's own ``torch.nn.utils.parametrize``, so any module that reads ``self.weight``
keeps working, and so do ``deepcopy``, ``torch.export`` and ONNX export.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from kogata.errors import UsageError
from kogata.forms import Dense, Form
from kogata.forms.zero_row import with_zero_row
from kogata.job import Site
from kogata.network.layers import kind_of
from kogata.network.quantizers import quantizers_of
from kogata.network.sharing import copies
from kogata.network.sites import form_at, form_of, modules_of, parametrizations, weights_of


def replace(model: nn.Module, site: Site, path: str, form: Form) -> None:
    """Put ``form`` in the place of the leaf, or other part, at ``path`` of the site's tree, in ``model`` itself.

    The padding row of an embedding stays zero where it is: PyTorch gives it no gradient, so nothing would ever correct it.
    """
    root = form_at(model, site)
    _, leaf = next(cast("Form", root.get_submodule(path)).leaves())
    form = form.to(device=leaf.values.device, dtype=leaf.values.dtype)
    if not trainable(root):
        form.requires_grad_(False)
    if isinstance(form, Dense):
        form.role = leaf.role  # other numbers, but what they are is the same
    rows = _zero_rows(model, site)
    whole = _with(root, path, form)
    for row in rows:
        whole = with_zero_row(whole, row)
    attach(model, site, whole)


def _zero_rows(model: nn.Module, site: Site) -> list[int]:
    """The rows of a weight that its layers take for padding, and that are zero."""
    found: dict[int, None] = {}
    for name in (site.name, *site.aliases):
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        row = kind_of(module).padding(module) if parameter == "weight" else None
        if row is not None and not bool(cast("Tensor", getattr(module, parameter))[row].any()):
            found[row] = None
    return list(found)


def _with(root: Form, path: str, form: Form) -> Form:
    """The tree with ``form`` at ``path``, each node above it simplified."""
    if not path:
        return form
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    setattr(owner, name, form)
    if isinstance(owner, nn.ModuleList):
        parent = parent.rpartition(".")[0]
        owner = root.get_submodule(parent)
    return _with(root, parent, cast("Form", owner).simplified())


def attach(model: nn.Module, site: Site, form: Form) -> None:
    """Let ``form`` hold the parameter of ``site`` and of everything tied to it; another form there gives way.

    A form that is one dense leaf needs no program: its values become a plain parameter. A frozen weight stays frozen: the form
    then requires no gradients.
    """
    if not trainable(form_at(model, site)):
        form.requires_grad_(False)
    if isinstance(form, Dense):
        for module, parameter in _owners(model, site):
            setattr(module, parameter, form.values)
    else:
        hold(model, site, form)


def hold(model: nn.Module, site: Site, form: Form) -> None:
    """The same, with a form that is dense too."""
    if callable(getattr(type(model), "save_pretrained", None)):
        model.save_pretrained = MethodType(save_pretrained, model)  # type: ignore[assignment]
    for module, parameter in _owners(model, site):
        # Parametrizing empties the parameter it takes over, in place; other copies of the model share that one. So it
        # gets an empty parameter of its own, which only remembers device and dtype: those of the form, whatever was there.
        leaf = next((leaf.values for _, leaf in form.leaves()), cast("Tensor", getattr(module, parameter)))
        setattr(module, parameter, nn.Parameter(leaf.new_empty(0), requires_grad=False))
        parametrize.register_parametrization(module, parameter, form, unsafe=True)
        if isinstance(module, nn.RNNBase):
            _follow(module)


def _owners(model: nn.Module, site: Site) -> Iterator[tuple[nn.Module, str]]:
    """Each module with the parameter of a site, free of any form."""
    for name in (site.name, *site.aliases):
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        if form_of(module, parameter) is not None:
            _plain_again(module, parameter)
        yield module, parameter


def _plain_again(module: nn.Module, parameter: str) -> None:
    """Take a form away from a parameter."""
    parametrize.remove_parametrizations(module, parameter, leave_parametrized=False)
    if isinstance(module, nn.RNNBase) and not parametrizations(module):
        module._init_flat_weights()  # pyright: ignore[reportPrivateUsage] - the list that the class was without meanwhile


def _follow(layer: nn.RNNBase) -> None:
    """Let a recurrent layer read its weights where they are.

    Its forward reads a list of them, ``_flat_weights``; the class that parametrizing has given it gets a property in its place.
    """
    kind, names = type(layer), "_flat_weights_names"

    def current(self: nn.Module) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in cast("list[str]", getattr(self, names))]

    layer.__dict__.pop("_flat_weights", None)
    kind._flat_weights = property(current, lambda self, _: None)  # type: ignore[assignment,method-assign]
    kind._update_flat_weights = lambda self: None  # type: ignore[assignment,method-assign]


def save_pretrained(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What ``save_pretrained`` of a model of transformers with forms does: it saves the model with dense weights.

    The class's own method would save the tensors of the forms, and ``from_pretrained`` would then initialize the weights anew.
    Raises UsageError for a model with activation quantizers, which only a ``.kogata`` file holds.
    """
    if rounded := [path for path, _ in quantizers_of(self)]:
        raise UsageError(
            f"save_pretrained: {type(self).__name__} has quantizers of activations ({rounded[0]}), which transformers cannot "
            "load. Use kogata.save(model, path) and kogata.load(path, into=model)."
        )
    return cast("Any", plain(self)).save_pretrained(*args, **kwargs)


def trainable(form: Form) -> bool:
    """Whether any parameter of the form requires gradients; a form without parameters counts as trainable."""
    wanted = [parameter.requires_grad for parameter in form.parameters()]
    return any(wanted) or not wanted


def clone(model: nn.Module, *, share: bool = True) -> nn.Module:
    """A copy of the module tree, with the same tensors (``share``) or with tensors of its own.

    Parametrizing changes the class of a module, and ``deepcopy`` hands that class on: each copy gets a class of its own, so
    that a later change of one leaves the other as it is.
    """
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors} if share else dict[int, Any](copies(tensors))
    for module in model.modules():
        held = vars(module).values()
        # deepcopy refuses computed tensors, such as the weight that a hook of weight_norm sets
        computed = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(tensor): tensor.detach() if share else tensor.detach().clone() for tensor in computed}
        # and takes most of its time for a module's tables of hooks, a dozen, nearly always empty
        memo |= {id(table): OrderedDict() for table in held if type(table) is OrderedDict and not table}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if parametrizations(module):
            kind = type(module)
            own = {k: v for k, v in kind.__dict__.items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = cast("type[nn.Module]", type(kind.__name__, kind.__bases__, own))
    return twin


def plain(model: nn.Module) -> nn.Module:
    """A copy without forms: each is computed once into a dense parameter, and no trace of Kogata is left.

    The copy shares no tensor with ``model``; train, move and cast it freely. A dense weight is trainable where its form was.

    >>> import torch, kogata
    >>> net = torch.nn.Linear(8, 4)
    >>> twin = kogata.plain(net)
    >>> _ = twin.weight.data.zero_()
    >>> bool(net.weight.any())
    True
    """
    return densify(clone(model, share=False))


def densify(model: nn.Module) -> nn.Module:
    """Compute every form of ``model``, in place, into a dense parameter, and return the model."""
    vars(model).pop("save_pretrained", None)
    computed: dict[int, nn.Parameter] = {}  # by form, so that tied weights stay tied
    for _, module in modules_of(model):
        for name, _ in list(weights_of(module)):
            if (form := form_of(module, name)) is not None:
                if id(form) not in computed:
                    value = cast("Tensor", getattr(module, name)).detach()
                    computed[id(form)] = nn.Parameter(value, requires_grad=trainable(form))
                _plain_again(module, name)
                setattr(module, name, computed[id(form)])
    return model

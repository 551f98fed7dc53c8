"""What methods may ask to know of a layer: statistics of its inputs and of the gradients of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import cast

import torch
from torch import Tensor

from kogata.forms import Form, Masked, Product, Separate, Transposed, ZeroRow
from kogata.forms.product import PAIR


class Stat(StrEnum):
    """A statistic of one layer, whose weight is seen as ``[outputs, columns]``.

    Its outputs are cut into G equal groups (one, save for grouped convolutions, projections of
    several inputs and stacks of matrices), each of which multiplies inputs
    X ``[rows, columns]`` of its own.
    """

    SQUARE = "square"  # mean of x² of each column
    GRAM = "gram"  # XᵀX / rows
    CROSS = "cross"  # YᵀX / rows, where Y are the inputs in the net before the method, X those in the net it has changed so far
    FISHER = "fisher"  # mean over samples of the squared gradient of each weight
    GRADIENT = "gradient"  # mean over samples of gᵀg, g the gradient of the layer's outputs
    # mean over samples of g² at one output, summed over its positions, for labels drawn from the model
    SENSITIVITY = "sensitivity"


INPUTS = frozenset({Stat.SQUARE, Stat.GRAM, Stat.CROSS})
GRADIENTS = frozenset({Stat.FISHER, Stat.GRADIENT, Stat.SENSITIVITY})


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What is known of one leaf. A statistic that was not asked for, or that the layer has not, is None.

    ``square_GI``, ``gram_GII`` and ``cross_GII`` are of the inputs that the leaf, seen as rows, multiplies; ``fisher`` has the
    leaf's shape.
    ``position`` (int64) says where the kept values of a mask lie in the flattened tensor that they stand for.

    An error e of one row of the leaf raises the loss of a sample by about ½ · ``sensitivity`` · e G eᵀ, with G the Gram matrix,
    or the identity where that is None.
    """

    square_GI: Tensor | None = None
    gram_GII: Tensor | None = None
    cross_GII: Tensor | None = None
    fisher: Tensor | None = None
    gradient_OO: Tensor | None = None
    sensitivity: float | None = None
    position: Tensor | None = None
    unseen: str = "its inputs could not be seen"  # why there are no statistics of inputs, where there are none


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Of one site: the Fisher diagonal of each leaf by its path, and the second moment of the output gradients.

    ``outputs_O`` is the sensitivity of the loss to the outputs of each row of all its matrices, None where no operation gives
    them; ``entries`` is that to one entry of each leaf, by path. Both are for labels drawn from the model.
    """

    fisher: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    gradient_OO: Tensor | None = None
    outputs_O: Tensor | None = None
    entries: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What one pass gathered for a site.

    Statistics of inputs are those of the rows of all its matrices, one after another, cut into G equal groups; ``reached_G``
    says which of these any input has reached. Where there are none, ``unseen`` is the reason.
    """

    square_GI: Tensor | None = None
    gram_GII: Tensor | None = None
    cross_GII: Tensor | None = None
    reached_G: Tensor | None = None
    gradients: Gradients = field(default_factory=Gradients)
    unseen: str = "its inputs could not be seen"

    def of(self, root: Form, path: str) -> Stats:
        """What is known of the leaf at ``path`` of the site's tree ``root``.

        The layer's inputs are those of a leaf that is the weight itself, or its kept values. Of the product of two matrices
        the right one meets the inputs first, and the left one what the right one makes of them. Other leaves have none.
        """
        names = path.split(".") if path else []
        parent = root.get_submodule(".".join(names[:-1])) if names else None
        matrix, names, found = self._matrix(root, names)
        square, gram, cross, unseen = found.square_GI, found.gram_GII, found.cross_GII, found.unseen
        inner = names[:-1] if isinstance(parent, Masked) else names
        if inner and not (len(inner) == 2 and isinstance(matrix, Product) and matrix.equation == PAIR):
            square = gram = cross = None
            unseen = "its inputs could not be seen: it is a part of what a step before left"
        elif inner == ["factors", "0"]:
            right_RI = cast("Form", cast("Product", matrix).factors[1]).dense().detach().float().cpu()
            gram, cross = (None if x is None or len(x) > 1 else right_RI @ x @ right_RI.T for x in (gram, cross))
            square = None if gram is None else gram.diagonal(dim1=1, dim2=2)
        square, gram, cross = _merged(square, gram, cross)
        outputs_O = found.gradients.outputs_O if gram is not None and inner != ["factors", "1"] else None
        return Stats(
            square_GI=square, gram_GII=gram, cross_GII=cross, fisher=self.gradients.fisher.get(path),
            gradient_OO=found.gradients.gradient_OO if not inner else None,
            sensitivity=_sensitivity(outputs_O, self.gradients.entries.get(path), gram),
            position=parent.position.long().cpu() if isinstance(parent, Masked) else None, unseen=unseen,
        )  # fmt: skip

    def _matrix(self, root: Form, names: list[str]) -> tuple[Form, list[str], Gathered]:
        """The matrix of a weight that a leaf belongs to, the leaf's path in it, and what is known of that matrix alone."""
        if isinstance(root, Transposed | ZeroRow):
            return self._matrix(root.part, names[1:])
        if not isinstance(root, Separate):
            return root, names, self
        number, count = int(names[1]), len(root.matrices)
        part = self._of_rows(number, count)
        return part._matrix(cast("Form", root.matrices[number]), names[2:])

    def _of_rows(self, number: int, count: int) -> Gathered:
        """What is known of one of ``count`` equal parts of the rows."""
        outputs_O = self.gradients.outputs_O
        gradients = Gradients(outputs_O=None if outputs_O is None else outputs_O.chunk(count)[number])
        if self.reached_G is None:
            return replace(self, gradients=gradients)
        groups = len(self.reached_G)
        chosen = slice(number * groups // count, max((number + 1) * groups // count, number * groups // count + 1))
        if not bool(self.reached_G[chosen].any()):
            return Gathered(unseen="its inputs could not be seen: no calibration data reaches this one of its matrices")
        square, gram, cross = (None if x is None else x[chosen] for x in (self.square_GI, self.gram_GII, self.cross_GII))
        return Gathered(
            square_GI=square, gram_GII=gram, cross_GII=cross, reached_G=self.reached_G[chosen], gradients=gradients
        )  # fmt: skip


def _sensitivity(outputs_O: Tensor | None, entry: float | None, gram_GII: Tensor | None) -> float | None:
    """The sensitivity to one output: the mean of those seen; otherwise as that to one entry of the leaf, g² x², tells."""
    if outputs_O is not None:
        return float(outputs_O.mean())
    if entry is None or gram_GII is None:
        return entry
    energy = float(gram_GII.diagonal(dim1=1, dim2=2).mean())
    return entry / energy if energy else None


def _merged(*statistics_G: Tensor | None) -> tuple[Tensor | None, ...]:
    """Groups whose statistics are all the same become one, such as the queries, keys and values of one input."""
    alike = all(torch.equal(x[0], other) for x in statistics_G if x is not None for other in x[1:])
    return tuple(x[:1] if x is not None and alike else x for x in statistics_G)


def power(weight: Tensor, gram_GII: Tensor) -> float:
    """``tr(W G Wᵀ)``, the mean square of the outputs, summed over the groups of a grouped convolution."""
    groups, columns, _ = gram_GII.shape
    rows_GOI = weight.detach().double().reshape(groups, -1, columns)
    return max(float(((rows_GOI @ gram_GII.double()) * rows_GOI).sum()), 0.0)

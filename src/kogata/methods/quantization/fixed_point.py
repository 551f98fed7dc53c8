"""Fixed-point training: every number a 16-bit integer times 2^−FL, rounded up or down at random.

Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical Precision", ICML 2015 (1502.02551), section 3:
numbers ⟨IL, FL⟩ have IL integer bits, the sign included, and FL fractional ones; ε = 2^−FL is the step.
    nearest     ⌊x⌉ε
    stochastic  ⌊x⌋ε with probability 1 − (x − ⌊x⌋ε) / ε, else ⌊x⌋ε + ε: the mean of many is x
and both saturate at −2^(IL−1) and 2^(IL−1) − ε. Weights and biases are rounded after each update, the inputs of layers in the
forward pass, gradients of weights and of inputs in the backward one. Where an update is smaller than ε/2, nearest loses it each
time; stochastic makes it now and then. Sums within a layer, and the optimizer's state, are in floating point.

Gradients are rounded ``loss_scale`` times as large. That of a mean over N samples is 1/N of what one sample gives, below ε for
most; scaled by N, gradients are those of the sum, whose division by N the learning rate can do (Micikevicius et al. 2018,
1710.03740, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, final

import torch
from torch import Tensor, nn

from kogata.errors import NotApplicable, UsageError
from kogata.forms import Affine, Dense, Form, Latent, Role
from kogata.forms.affine import MAX_BITS, as_rows
from kogata.forms.latent import straight_through
from kogata.methods.base.method import About
from kogata.methods.base.trained import PreciseWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.network.quantizers import LatentQuantizer, Static, layers_of
from kogata.network.sites import form_at, sites_of
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper


@final
@dataclass(frozen=True, kw_only=True)
class FixedPoint(TrainingMethod):
    """Train in numbers of ``integer`` bits (with the sign, at least 1) and ``fraction`` bits, 16 at most together.

    The biases of the selected layers come along; normalization layers stay in floating point. In the trained model, inputs of
    layers are rounded to nearest. Set ``loss_scale`` to about the batch size where the loss is a mean.

    >>> import torch
    >>> from kogata.methods import FixedPoint, Recover
    >>> net = FixedPoint(integer=2, fraction=6, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'affine'
    """

    integer: Annotated[int, Range(ge=1, le=MAX_BITS)]
    fraction: Annotated[int, Range(ge=0, lt=MAX_BITS)]
    recover: Recover
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    loss_scale: Annotated[float, Range(gt=0, example=128)] = 1.0

    ABOUT = About(
        name="fixed-point",
        family="quantization",
        summary="train in fixed-point numbers with stochastic rounding",
        paper="Gupta et al. 2015, arXiv 1502.02551",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES, Role.VECTOR}),
        leaves=frozenset({Role.SCALE}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integer + self.fraction > MAX_BITS:
            raise UsageError(
                f"fixed-point: {self.integer} integer and {self.fraction} fraction bits; expected at most {MAX_BITS} bits "
                "together."
            )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """Each target's values, and the biases beside them, on the grid; rounding on what flows into their layers."""
        for target in targets:
            if target.leaf.values.dtype not in (torch.float32, torch.float64):
                raise NotApplicable(
                    f"{target.site.name} is {target.leaf.values.dtype}, which cannot hold {self.integer + self.fraction} bits; "
                    "convert the model with .float() first"
                )
        stochastic = self.rounding == "stochastic"
        grid = Grid(integer=self.integer, fraction=self.fraction, stochastic=stochastic, loss_scale=self.loss_scale)
        flows = [(layer, _Flow(grid)) for layer in layers_of(model, (target.site for target in targets))]
        return PreciseWrapper(model, [(t, _Fixed(t.leaf, grid)) for t in (*targets, *_biases(model, targets))], flows)


def _biases(model: nn.Module, targets: Sequence[TrainedLeaf]) -> list[TrainedLeaf]:
    """The plain biases of the targets' layers that are not targets themselves."""
    chosen, found = {target.site for target in targets}, list[TrainedLeaf]()
    modules = {site.module for site in chosen}
    for site in sites_of(model):
        form = form_at(model, site)
        if site.module in modules and site.parameter == "bias" and site not in chosen and isinstance(form, Dense):
            found.append(TrainedLeaf(site=site, path="", leaf=form))
    return found


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers ⟨IL, FL⟩ and how others are rounded to them while training."""

    integer: int
    fraction: int
    stochastic: bool
    loss_scale: float

    @property
    def zero(self) -> int:
        """Steps from the least number to 0."""
        return 2 ** (self.integer + self.fraction - 1)

    @property
    def bits(self) -> int:
        """Of one number."""
        return self.integer + self.fraction

    def codes(self, x: Tensor, *, stochastic: bool) -> Tensor:
        """The integers that stand for ``x`` once rounded, in its dtype."""
        steps = x * 2.0**self.fraction
        down = steps.floor()
        up = torch.rand_like(steps) < steps - down if stochastic else steps - down >= 0.5
        return (down + up).clamp(-self.zero, self.zero - 1)

    def rounded(self, x: Tensor, *, stochastic: bool) -> Tensor:
        """The numbers themselves."""
        return self.codes(x, stochastic=stochastic) * 2.0**-self.fraction


class _RoundedGradient(torch.autograd.Function):
    """Hands on what comes in; rounds the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        ctx.grid = grid
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        grid: Grid = ctx.grid
        return grid.rounded(gradients[0] * grid.loss_scale, stochastic=grid.stochastic) / grid.loss_scale, None


def _with_rounded_gradient(x: Tensor, grid: Grid) -> Tensor:
    return cast("Tensor", _RoundedGradient.apply(x, grid))


class _Fixed(Latent):
    """Values on the grid after every step."""

    def __init__(self, values: Dense, grid: Grid) -> None:
        super().__init__(Dense(grid.rounded(values.values.detach(), stochastic=False), values.role))
        self.grid = grid

    def dense(self) -> Tensor:
        """The values, whose gradient is rounded."""
        return _with_rounded_gradient(self.values.dense(), self.grid)

    def step(self) -> None:
        """Back to the grid after an update."""
        with torch.no_grad():
            self.values.values.copy_(self.grid.rounded(self.values.values, stochastic=self.grid.stochastic))

    def freeze(self) -> Form:
        """The same numbers as codes under the step ε."""
        weight = self.values.values.detach()
        rows, columns = as_rows(weight).shape
        scale = weight.new_full((rows, 1), 2.0**-self.grid.fraction)
        zero = torch.full_like(scale, self.grid.zero)
        return Affine.of(weight, scale, zero, bits=self.grid.bits, group=columns)


class _Flow(LatentQuantizer):
    """Rounds what flows into a layer, and the gradient that flows back out."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """On the grid; at random only while training."""
        rounded = self.grid.rounded(x.detach(), stochastic=self.grid.stochastic and self.training)
        return straight_through(rounded, _with_rounded_gradient(x, self.grid))

    def freeze(self) -> Static:
        """The same grid, rounding to nearest."""
        return Static(torch.tensor([2.0**-self.grid.fraction]), bits=self.grid.bits, zero=self.grid.zero)

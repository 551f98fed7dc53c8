"""Fixed-point training with stochastic rounding: every number is an integer of at most 16 bits times 2^−FL.

Gupta, Agrawal, Gopalakrishnan, Narayanan, "Deep Learning with Limited Numerical Precision", ICML 2015 (1502.02551), section 3:
numbers in the format ⟨IL, FL⟩ have IL integer bits, the sign included, and FL fractional bits. With the step ε = 2^−FL,
    nearest     ⌊x⌉ε
    stochastic  ⌊x⌋ε with probability 1 − (x − ⌊x⌋ε) / ε, else ⌊x⌋ε + ε; its expectation is x
and both saturate at −2^(IL−1) and 2^(IL−1) − ε. Weights and biases are rounded after each update, the inputs of layers in the
forward pass, and the gradients of weights and inputs in the backward pass. Rounding to nearest loses every update smaller than
ε/2, while stochastic rounding applies it with some probability. Sums within a layer and the state of the optimizer are in
floating point.

Gradients are multiplied by ``loss_scale`` for rounding. For a loss that is a mean over N samples, most gradients would be below
ε; scaled by N they are those of the sum (loss scaling, Micikevicius et al. 2018, 1710.03740, section 3.2).
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
    """Train with fixed-point numbers of ``integer`` bits (including the sign, at least 1) and ``fraction`` bits.

    Both together are at most 16, otherwise UsageError is raised. The biases of the selected layers are included; normalization
    layers stay in floating point. In the trained model, inputs of layers are rounded to nearest. Set ``loss_scale`` to about
    the batch size if the loss is a mean. Raises DataError without training data.

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
        """The model with fixed-point targets and biases, and with quantizers on the inputs of their layers."""
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
    """The plain biases of the targets' layers, except those that are targets themselves."""
    chosen, found = {target.site for target in targets}, list[TrainedLeaf]()
    modules = {site.module for site in chosen}
    for site in sites_of(model):
        form = form_at(model, site)
        if site.module in modules and site.parameter == "bias" and site not in chosen and isinstance(form, Dense):
            found.append(TrainedLeaf(site=site, path="", leaf=form))
    return found


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The fixed-point format ⟨IL, FL⟩ and how values are rounded to it during training."""

    integer: int
    fraction: int
    stochastic: bool
    loss_scale: float

    @property
    def zero(self) -> int:
        """The code of 0: the number of steps from the smallest number to 0."""
        return 2 ** (self.integer + self.fraction - 1)

    @property
    def bits(self) -> int:
        """The bit width of one number."""
        return self.integer + self.fraction

    def codes(self, x: Tensor, *, stochastic: bool) -> Tensor:
        """The signed integer codes of ``x`` after rounding, in its dtype."""
        steps = x * 2.0**self.fraction
        down = steps.floor()
        up = torch.rand_like(steps) < steps - down if stochastic else steps - down >= 0.5
        return (down + up).clamp(-self.zero, self.zero - 1)

    def rounded(self, x: Tensor, *, stochastic: bool) -> Tensor:
        """``x`` rounded to the format."""
        return self.codes(x, stochastic=stochastic) * 2.0**-self.fraction


class _RoundedGradient(torch.autograd.Function):
    """The identity in the forward pass; rounds the gradient in the backward pass."""

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
    """Values that are rounded to the format after every step."""

    def __init__(self, values: Dense, grid: Grid) -> None:
        super().__init__(Dense(grid.rounded(values.values.detach(), stochastic=False), values.role))
        self.grid = grid

    def dense(self) -> Tensor:
        """The values; their gradient is rounded."""
        return _with_rounded_gradient(self.values.dense(), self.grid)

    def step(self) -> None:
        """Round the values after an update."""
        with torch.no_grad():
            self.values.values.copy_(self.grid.rounded(self.values.values, stochastic=self.grid.stochastic))

    def freeze(self) -> Form:
        """The same numbers as codes with the scale ε."""
        weight = self.values.values.detach()
        rows, columns = as_rows(weight).shape
        scale = weight.new_full((rows, 1), 2.0**-self.grid.fraction)
        zero = torch.full_like(scale, self.grid.zero)
        return Affine.of(weight, scale, zero, bits=self.grid.bits, group=columns)


class _Flow(LatentQuantizer):
    """Rounds the inputs of a layer, and the gradient with respect to them."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the format, stochastically only in training mode."""
        rounded = self.grid.rounded(x.detach(), stochastic=self.grid.stochastic and self.training)
        return straight_through(rounded, _with_rounded_gradient(x, self.grid))

    def freeze(self) -> Static:
        """A quantizer of the same format that rounds to nearest."""
        return Static(torch.tensor([2.0**-self.grid.fraction], dtype=torch.float32), bits=self.grid.bits, zero=self.grid.zero)

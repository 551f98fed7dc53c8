"""LSQ: the step size of a uniform quantizer is learnt together with the weights.

Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020 (1902.08153), equations 1 to 3 and
section 2.2:
    v̂ = s ⌊clip(v / s, −Q_N, Q_P)⌉,  s₀ = 2 mean|v| / √Q_P,
    ∂v̂/∂s = ⌊v/s⌉ − v/s inside, −Q_N or Q_P outside;  the gradient of s is scaled by g = 1 / √(N Q_P).
Weights are signed and have one step size for each row. The inputs of layers, where they are quantized, have one step size for
each layer, and are unsigned where the first batch has no negative values.

The trained parameter is the step size relative to its initial value. Adam changes every parameter by about the learning rate,
whatever the size of its gradient, and would turn small step sizes negative. Under plain gradient descent the updates are
exactly those of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn

from kogata.forms import Affine, Dense, Form, Latent, Role
from kogata.forms.affine import as_rows
from kogata.forms.latent import narrowed, straight_through
from kogata.methods.base.method import About
from kogata.methods.base.trained import LatentWrapper, TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.network.quantizers import LatentQuantizer, Static, layers_of
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper

LEAST = 1e-2  # smallest step size, relative to its initial value; it must stay positive


@final
@dataclass(frozen=True, kw_only=True)
class LSQ(TrainingMethod):
    """Train weights of ``bits`` (2 to 8), and with ``activations`` (2 to 8) also inputs of so many bits, and their step sizes.

    Inputs are quantized in linear and convolutional layers only; None leaves them alone. The paper keeps the first and the last
    layer at 8 bits. Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import LSQ, Recover
    >>> net = LSQ(bits=2, recover=Recover(epochs=5)).begin(torch.nn.Linear(16, 8))
    >>> net.finish().parametrizations.weight[0].describe()
    'affine'
    """

    bits: Annotated[int, Range(ge=2, le=8)]
    recover: Recover
    activations: Annotated[int, Range(ge=2, le=8)] | None = None

    ABOUT = About(
        name="lsq",
        family="quantization",
        summary="train n-bit weights and inputs together with their step sizes",
        paper="Esser et al. 2020, arXiv 1902.08153",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.SCALE}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with quantized targets, whose values are the real weights, and with quantizers on the layers' inputs."""
        flows: list[tuple[nn.Module, LatentQuantizer]] = []
        if self.activations is not None:
            flows = [(layer, Learnt(bits=self.activations)) for layer in layers_of(model, (t.site for t in targets))]
        return LatentWrapper(model, [(target, Stepped(target.leaf, self.bits)) for target in targets], flows)


class Stepped(Latent):
    """Signed values with a learnt step size for each row: ``start`` (``[rows, 1]``) times the trained ``relative``."""

    start: Tensor
    relative: Dense

    def __init__(self, values: Dense, bits: int) -> None:
        super().__init__(values)
        self.low, self.high = 2 ** (bits - 1), 2 ** (bits - 1) - 1
        self.bits = bits
        rows_OI = as_rows(values.values.detach())
        self.register_buffer("start", _first(rows_OI.abs().mean(1, keepdim=True), self.high))
        self.relative = Dense(torch.ones_like(self.start), Role.SCALE)

    def dense(self) -> Tensor:
        """The rounded values."""
        rows_OI = as_rows(self.values.dense())
        return _rounded(rows_OI, self._scale(), -self.low, self.high).reshape(self.shape)

    def step(self) -> None:
        """Keep the step sizes positive."""
        _keep_positive(self.relative.values)

    def freeze(self) -> Form:
        """The codes and step sizes."""
        with torch.no_grad():
            rows_OI, scale_O1 = as_rows(self.values.dense()), self._scale()
            code = ((rows_OI / scale_O1).clamp(-self.low, self.high).round() + self.low).to(torch.uint8).reshape(self.shape)
        zero_O1 = torch.full_like(scale_O1, self.low, dtype=torch.uint8)
        return Affine(code, Dense(scale_O1, Role.SCALE), zero_O1, bits=self.bits, group=rows_OI.shape[1])

    def _scale(self) -> Tensor:
        columns = self.shape.numel() // len(self.start)
        return narrowed(_scaled(self.relative.dense(), self.start, columns, self.high))


class Learnt(LatentQuantizer):
    """A learnt step size for the inputs of a layer: ``start`` (``[1]``, zero before the first batch) times ``relative``."""

    relative: nn.Parameter
    start: Tensor
    zero: Tensor  # int64, [1]

    def __init__(self, *, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.relative = nn.Parameter(torch.ones(1, dtype=torch.float32))
        self.register_buffer("start", torch.zeros(1, dtype=torch.float32))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """The rounded input. The first call sets the initial step size and whether the quantizer is signed."""
        if not self.start:
            if (x < 0).any():
                self.zero.fill_(2 ** (self.bits - 1))
            self.start.copy_(_first(x.detach().float().abs().mean().reshape(1), self._high()))
        scale = _scaled(self.relative, self.start, x[0].numel(), self._high())
        return _rounded(x.float(), scale, -int(self.zero), self._high()).to(x.dtype)

    def freeze(self) -> Static:
        """The quantizer with its step size fixed; the step size is 1 if the layer was never called."""
        scale = self.start * self.relative.detach() if self.start else torch.ones_like(self.start)
        return Static(scale, bits=self.bits, zero=int(self.zero))

    def step(self) -> None:
        """Keep the step size positive."""
        _keep_positive(self.relative)

    def _high(self) -> int:
        return 2**self.bits - 1 - int(self.zero)


def _first(mean: Tensor, high: int) -> Tensor:
    """The initial step size; a tiny one where all values are zero."""
    return narrowed((2 * mean / high**0.5).clamp_min(torch.finfo(torch.float16).smallest_normal))


def _scaled(relative: Tensor, start: Tensor, count: int, high: int) -> Tensor:
    """The step size. Its gradient in ``relative`` is scaled so that gradient descent updates the step size as in the paper."""
    factor = 1 / (start * (count * high) ** 0.5)
    return straight_through(start * relative, relative * factor)


def _rounded(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    clamped = (values / scale).clamp(low, high)
    return straight_through(clamped.round(), clamped) * scale


def _keep_positive(relative: nn.Parameter) -> None:
    with torch.no_grad():
        relative.clamp_(min=LEAST)

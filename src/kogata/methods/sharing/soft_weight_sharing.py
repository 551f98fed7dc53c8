"""Soft weight sharing: a mixture of Gaussians is learnt together with the weights, which cluster around its means.

Nowlan and Hinton, "Simplifying Neural Networks by Soft Weight-Sharing", Neural Computation 4, 1992;
Ullrich, Meeds, Welling, "Soft Weight-Sharing for Neural Network Compression", ICLR 2017 (1702.04008), equation 9:
    L = error − (τ / N) [Σ_i log Σ_k π_k N(w_i | μ_k, 1/γ_k) + log p(γ) + log p(π_0)],  μ_0 = 0,
    p(γ_k) = Gamma(a, b),  p(π_0) = Beta.
Afterwards similar components are merged, each weight is assigned to the component with the largest responsibility for it, and
the weights of component 0 are pruned. As in the paper, one mixture covers the whole model. Each layer then stores its own
table, with the means of the layer's weights in each component, which are at least as close to the weights as μ_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kogata.forms import Form, Masked, Role
from kogata.methods.base.method import About
from kogata.methods.base.trained import TrainedLeaf, TrainingMethod
from kogata.methods.recover import Recover
from kogata.methods.sharing import scalar
from kogata.network import surgery
from kogata.settings import Range
from kogata.training.wrapper import TrainingWrapper

ZERO_COUNT, COUNT = 5000.0, 250.0  # strength of the Gamma hyper-priors of γ_0 and the other γ, in weights (paper)
MERGED = 1.0  # components merge below this symmetric KL divergence; for equal widths: when their means are one width apart
PIECE = 1 << 20  # number of weights assigned at a time


@final
@dataclass(frozen=True, kw_only=True)
class SoftWeightSharing(TrainingMethod):
    """Train the weights towards at most ``components`` shared values (1 to 32,767) and zero.

    ``strength``, above 0, is τ / N for N training examples: the weight of the complexity cost, in nats, relative to the loss; 1
    / N is the full cost of describing the weights. ``zero``, in (0, 1), is the expected fraction of zeros (the mode of the Beta
    hyper-prior, as strong as all weights together). ``width``, above 0, is the expected standard deviation of a component (the
    Gamma hyper-prior). Raises DataError without training data.

    >>> import torch
    >>> from kogata.methods import SoftWeightSharing, Recover
    >>> net = SoftWeightSharing(components=8, recover=Recover(epochs=5)).begin(torch.nn.Linear(64, 32))
    >>> net.finish().parametrizations.weight[0].describe()
    'masked(codebook)'
    """

    recover: Recover
    components: Annotated[int, Range(ge=1, lt=2**15)] = 16
    strength: Annotated[float, Range(gt=0, example=1e-7)] = 1e-7
    zero: Annotated[float, Range(gt=0, lt=1, example=0.99)] = 0.99
    width: Annotated[float, Range(gt=0, example=0.02)] = 0.02

    ABOUT = About(
        name="soft-sharing",
        family="sharing",
        summary="weights cluster around the means of a mixture that is learnt with them",
        paper="Ullrich et al. 2017, arXiv 1702.04008",
        training=True,
        accepts=frozenset({Role.MATRIX, Role.VALUES}),
        leaves=frozenset({Role.TABLE}),
    )

    def wrap(self, model: nn.Module, targets: Sequence[TrainedLeaf]) -> TrainingWrapper:
        """The model with one mixture for the weights of all targets."""
        return _Mixing(model, targets, self)


@dataclass(frozen=True)
class Mixture:
    """The components of a mixture, each field ``[K]`` and float64. Component 0 has mean 0."""

    means: Tensor
    log_precisions: Tensor
    log_shares: Tensor

    def merged(self) -> Mixture:
        """Merge the closest two components into one of the same mass, mean and variance, until none are close."""
        share, mean, variance = self.log_shares.exp(), self.means.clone(), (-self.log_precisions).exp()
        while len(mean) > 1:
            ratio = variance[:, None] / variance
            gap = (mean[:, None] - mean).square() * (1 / variance[:, None] + 1 / variance)
            divergence = ((ratio + 1 / ratio + gap) / 2 - 1).fill_diagonal_(math.inf)
            i, j = sorted(divmod(int(divergence.argmin()), len(mean)))
            if divergence[i, j] >= MERGED:
                break
            pair = torch.tensor([i, j])
            part = share[pair] / share[pair].sum()
            centre = (part * mean[pair]).sum() if i else mean.new_zeros(())  # component 0 stays at 0
            variance[i] = (part * (variance[pair] + (mean[pair] - centre).square())).sum()
            share[i], mean[i] = share[pair].sum(), centre
            rest = torch.arange(len(mean)) != j
            share, mean, variance = share[rest], mean[rest], variance[rest]
        return Mixture(mean, -variance.log(), share.log())

    def responsible(self, values: Tensor) -> Tensor:
        """The index of the component with the largest responsibility for each of ``values`` (flat)."""
        height = self.log_shares + self.log_precisions / 2
        return torch.cat([
            (height - self.log_precisions.exp() * (piece.double()[:, None] - self.means).square() / 2).argmax(1)
            for piece in values.split(PIECE)
        ])  # fmt: skip

    def encode(self, weight: Tensor) -> Form:
        """The kept values of ``weight`` as a codebook under a mask. A layer with zeros only keeps its largest weight."""
        values = weight.flatten()
        component = self.responsible(values)
        if not component.any():
            component[values.abs().argmax()] = 1
        kept = component > 0
        held = torch.bincount(component[kept]).clamp_min(1)
        table = torch.zeros(len(held), dtype=torch.float64).index_add_(0, component[kept], values[kept].double()) / held
        if kept.all():
            return scalar.codebook(weight, component, table.to(weight.dtype))
        form = Masked.of(weight, kept.reshape(weight.shape))
        form.values = scalar.codebook(values[kept], component[kept], table.to(weight.dtype))
        return form


def negative_log_likelihood(weights: Sequence[Tensor], mixture: Mixture) -> Tensor:
    """−Σ log p(w) over all entries of ``weights``, a scalar that is differentiable in the weights and the mixture."""
    flat = torch.cat([weight.flatten().float() for weight in weights])
    return _NegativeLog.apply(flat, mixture.means, mixture.log_precisions, mixture.log_shares)


class _NegativeLog(torch.autograd.Function):
    """Computes value and gradients in one pass of a compiled kernel; autograd would hold several [N, K] tensors."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        from kogata.methods.kernels import mixture  # numba takes half a second to import

        numbers, means, log_precisions, log_shares = (tensor.detach().cpu().contiguous() for tensor in tensors)
        slope = torch.empty_like(numbers)
        slopes = torch.zeros(3, len(means), dtype=torch.float64)
        if not all(bool(torch.isfinite(part).all()) for part in (numbers, means, log_precisions, log_shares)):
            ctx.slopes = [torch.zeros_like(tensor) for tensor in tensors]
            return tensors[0].new_tensor(math.nan)  # training names the cause
        value = mixture.negative_log(
            numbers.numpy(), means.double().numpy(), log_precisions.double().numpy(), log_shares.double().numpy(),
            slope.numpy(), slopes.numpy(),
        )  # fmt: skip
        ctx.slopes = [found.to(like) for found, like in zip((slope, *slopes), tensors, strict=True)]
        return tensors[0].new_tensor(value)

    @staticmethod
    @once_differentiable  # its type stub hides the names of the arguments
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(outputs[0] * slope for slope in ctx.slopes)


class _Mixing(TrainingWrapper):
    """Trains weights together with the means, log precisions and mixing logits of their mixture."""

    def __init__(self, model: nn.Module, targets: Sequence[TrainedLeaf], method: SoftWeightSharing) -> None:
        super().__init__(model)
        self._targets, self._method = list(targets), method
        values = torch.cat([target.leaf.values.detach().float().flatten() for target in targets])
        self._count = len(values)
        means = scalar.clustered(values.cpu(), torch.ones_like(values.cpu()), method.components)
        self.means = nn.Parameter(means.to(values))
        self.log_precisions = nn.Parameter(values.new_full((len(means) + 1,), -2 * math.log(method.width)))
        shares = values.new_tensor([method.zero, *[(1 - method.zero) / len(means)] * len(means)])
        self.logits = nn.Parameter(shares.log())

    def mixture(self) -> Mixture:
        """The current mixture, including component 0."""
        means = functional.pad(self.means.double(), (1, 0))
        return Mixture(means, self.log_precisions.double(), self.logits.double().log_softmax(0))

    def penalty(self) -> Tensor:
        """The cost of describing the weights under the mixture, including the hyper-priors."""
        mixture, zero = self.mixture(), self._method.zero
        likelihood = negative_log_likelihood([target.leaf.values for target in self._targets], mixture)
        count = mixture.means.new_tensor([ZERO_COUNT, *[COUNT] * len(self.means)])
        # Gamma with its mode at 1 / width²: a log γ − b γ
        gamma = (count * (mixture.log_precisions - mixture.log_precisions.exp() * self._method.width**2)).sum()
        others = mixture.log_shares[1:].logsumexp(0)
        beta = self._count * (zero * mixture.log_shares[0] + (1 - zero) * others)
        return self._method.strength * (likelihood - gamma - beta).float()

    def finish(self) -> nn.Module:
        """The model, with the weights of each target as a codebook under a mask."""
        with torch.no_grad():
            mixture = self.mixture()
        found = Mixture(*(tensor.cpu() for tensor in (mixture.means, mixture.log_precisions, mixture.log_shares))).merged()
        for target in self._targets:
            weight = target.leaf.values.detach().float().cpu()
            surgery.replace(self.model, target.site, target.path, found.encode(weight))
        return self.model

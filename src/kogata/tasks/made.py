"""Data to distil on when there is little or none: mixtures of what there is, noise, or inputs drawn out of the teacher.

Zhang, Cisse, Dauphin, Lopez-Paz, "mixup", ICLR 2018 (1710.09412):  x = λ x_i + (1 − λ) x_j,  λ ~ Beta(α, α); the teacher says
what belongs to x. Nayak, Mopuri, Shaj, Babu, Chakraborty, "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019
(1905.08114): inputs x whose softened output is a draw y from a Dirichlet distribution that likes like classes,
    min_x CE(y, softmax(f(x) / τ)),   y ~ Dir(β c_k),   c_k the cosines of class k's weights with all classes', in [0, 1].
Yin et al., "Dreaming to Distill", CVPR 2020 (1912.08795), equations 4 to 6, adds, over the batch normalization layers l,
    s Σ_l ‖μ_l(x) − mean_l‖ + ‖σ²_l(x) − var_l‖,   and v · the total variation of images.

All give batches ``(inputs, targets)`` for :attr:`kogata.Task.train`. Mixtures and noise are drawn from torch's global
generator, which :func:`kogata.training.loop.fit` seeds before every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import DataError, NotApplicable, UsageError
from kogata.network.batch import call, evaluating, split
from kogata.settings import Range, check
from kogata.tasks.batches import Batches

Judge = Callable[[Tensor], Tensor]
"""What the targets are, of the teacher's output: by default the class of the highest score."""


def classes(output: Tensor) -> Tensor:
    """The class of the highest score along axis 1, int64."""
    return output.argmax(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixup:
    """Batches whose inputs, tensors ``[N, ...]``, are mixed with others of the batch; the targets are the teacher's.

    ``alpha`` is that of the Beta distribution: near 0 hardly anything is mixed, 1 mixes evenly.
    """

    batches: Iterable[Any]
    teacher: nn.Module
    alpha: Annotated[float, Range(gt=0, example=1.0)] = 1.0
    judge: Judge = classes

    def __post_init__(self) -> None:
        check(self, "mixup")

    def __len__(self) -> int:
        """As many as there are. Raises TypeError where that is not known."""
        return len(cast("Sized", self.batches))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass."""
        for batch in self.batches:
            inputs = split(batch)[0]
            if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
                raise DataError(f"mixup: inputs are {type(inputs).__name__}; only float tensors [N, ...] can be mixed.")
            share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(inputs), *[1] * (inputs.ndim - 1)))
            mixed = torch.lerp(inputs[torch.randperm(len(inputs))], inputs, share.to(inputs))
            yield mixed, _judged(self.teacher, mixed, self.judge)


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """``count`` batches of Gaussian inputs of ``shape``, the batch first; the targets are the teacher's."""

    teacher: nn.Module
    shape: tuple[Annotated[int, Range(ge=1)], ...]
    count: Annotated[int, Range(ge=1)]
    mean: float = 0.0
    deviation: Annotated[float, Range(gt=0)] = 1.0
    judge: Judge = classes

    def __post_init__(self) -> None:
        check(self, "noise")
        if not self.shape:
            raise UsageError("noise: shape is empty; expected that of a batch, such as (64, 1, 28, 28).")

    def __len__(self) -> int:
        """The number of batches in a pass."""
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass."""
        for _ in range(self.count):
            inputs = self.mean + self.deviation * torch.randn(self.shape)
            yield inputs, _judged(self.teacher, inputs, self.judge)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """How inputs are drawn out of a teacher: ``steps`` of Adam on each batch, from Gaussian noise.

    ``temperature`` is τ and ``concentration`` β; ``statistics`` is s, for nets with batch normalization, and ``smoothness`` v,
    for images. ``bounds`` are the lowest and highest value that an input may have.
    """

    steps: Annotated[int, Range(ge=1)] = 200
    learning_rate: Annotated[float, Range(gt=0)] = 0.1
    temperature: Annotated[float, Range(gt=0)] = 20.0
    concentration: Annotated[float, Range(gt=0)] = 1.0
    statistics: Annotated[float, Range(ge=0)] = 1.0
    smoothness: Annotated[float, Range(ge=0)] = 0.0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        check(self, "synthesis")
        if not self.bounds[0] < self.bounds[1]:
            raise UsageError(f"synthesis: bounds is {self.bounds}; expected the lower one first.")


def synthesized(
    teacher: nn.Module, shape: tuple[int, ...], count: int, settings: Synthesis | None = None, *, seed: int = 0
) -> Batches:
    """``count`` batches of inputs of ``shape``, the batch first, that a classifier holds for its classes, and these classes.

    Raises NotApplicable when the teacher's last linear layer does not give its output ``[N, classes]``.
    """
    settings = Synthesis() if settings is None else settings
    with torch.random.fork_rng(), _frozen(teacher):
        torch.manual_seed(seed)
        similarity_CC = class_similarity(teacher, shape)
        made = [_batch(teacher, shape, similarity_CC, settings) for _ in range(count)]
    inputs, targets = (torch.cat(parts) for parts in zip(*made, strict=True))
    return Batches(inputs, targets, shape[0], shuffle=True)


def class_similarity(teacher: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """c of the classes' output weights, ``[classes, classes]`` in [0, 1]."""
    last = next((m for m in reversed(list(teacher.modules())) if isinstance(m, nn.Linear)), None)
    with evaluating(teacher):
        output = call(teacher, torch.zeros((2, *shape[1:])))
    if last is None or not isinstance(output, Tensor) or output.shape != (2, last.out_features):
        raise NotApplicable("synthesized: the teacher does not end in a linear layer of [N, classes] to say which are alike.")
    weight_CI = functional.normalize(last.weight.detach(), dim=1)
    cosine_CC = weight_CI @ weight_CI.T
    low, high = cosine_CC.min(1, keepdim=True).values, cosine_CC.max(1, keepdim=True).values
    return (cosine_CC - low) / (high - low).clamp_min(torch.finfo(cosine_CC.dtype).tiny)


def _batch(teacher: nn.Module, shape: tuple[int, ...], similarity_CC: Tensor, settings: Synthesis) -> tuple[Tensor, Tensor]:
    """One batch of inputs and the classes that the teacher sees in them."""
    chosen = torch.randint(len(similarity_CC), (shape[0],))
    wanted_NC = torch.distributions.Dirichlet(settings.concentration * similarity_CC[chosen] + 1e-3).sample()
    inputs = torch.randn(shape).clamp(*settings.bounds).requires_grad_()
    optimizer = torch.optim.Adam([inputs], lr=settings.learning_rate)
    for _ in range(settings.steps):
        gaps = list[Tensor]()
        handles = [
            module.register_forward_pre_hook(partial(_compare, gaps)) for module in teacher.modules()
            if settings.statistics and isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
        ]  # fmt: skip
        output_NC = teacher(inputs) / settings.temperature
        for handle in handles:
            handle.remove()
        loss = functional.cross_entropy(output_NC, wanted_NC)
        if gaps:
            loss = loss + settings.statistics * torch.stack(gaps).sum()
        if settings.smoothness and inputs.ndim == 4:
            loss = loss + settings.smoothness * (inputs.diff(dim=2).abs().mean() + inputs.diff(dim=3).abs().mean())
        (inputs.grad,) = torch.autograd.grad(loss, [inputs])
        optimizer.step()
        with torch.no_grad():
            inputs.clamp_(*settings.bounds)
    if not torch.isfinite(inputs).all():
        raise DataError(f"synthesized: inputs became NaN or infinite; lower the learning rate ({settings.learning_rate}).")
    found = inputs.detach()
    return found, _judged(teacher, found, classes)


def _compare(gaps: list[Tensor], module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Append how far the mean and variance of a batch are from those that a normalization layer has seen in training."""
    axes = [axis for axis in range(args[0].ndim) if axis != 1]
    variance, mean = torch.var_mean(args[0], axes, correction=0)
    gaps.append((mean - module.get_buffer("running_mean")).norm() + (variance - module.get_buffer("running_var")).norm())


@contextmanager
def _frozen(teacher: nn.Module) -> Generator[None, None, None]:
    """The teacher in evaluation mode; gradients flow to its inputs, but not into it."""
    modes = {module: module.training for module in teacher.modules()}
    trains = {parameter: parameter.requires_grad for parameter in teacher.parameters()}
    teacher.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, train in trains.items():
            parameter.requires_grad_(train)


def _judged(teacher: nn.Module, inputs: Tensor, judge: Judge) -> Tensor:
    """What the teacher makes of the inputs."""
    with evaluating(teacher):
        return judge(call(teacher, inputs))

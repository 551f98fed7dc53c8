"""Training data for distillation when there is little or none: mixup, noise, or inputs synthesized from the teacher.

Zhang, Cisse, Dauphin, Lopez-Paz, "mixup", ICLR 2018 (1710.09412):  x = λ x_i + (1 − λ) x_j,  λ ~ Beta(α, α); here the target of
x is the teacher's output for x. Nayak, Mopuri, Shaj, Babu, Chakraborty, "Zero-Shot Knowledge Distillation in Deep Networks",
ICML 2019 (1905.08114): inputs x whose softened output is a sample y of a Dirichlet distribution that prefers similar classes,
    min_x CE(y, softmax(f(x) / τ)),   y ~ Dir(β c_k),   c_k the cosines of class k's weights with all classes', in [0, 1].
Yin et al., "Dreaming to Distill", CVPR 2020 (1912.08795), equations 4 to 6, adds, over the batch normalization layers l with
running statistics mean_l and var_l,
    s Σ_l ‖μ_l(x) − mean_l‖ + ‖σ²_l(x) − var_l‖,   and v · the total variation of images.

All give batches ``(inputs, targets)`` for :attr:`kogata.Task.train`. Mixup and noise use torch's global generator, which
:func:`kogata.training.loop.fit` seeds before every epoch.
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
"""Computes the targets of a batch from the teacher's output; by default the class of the highest score."""


def classes(output: Tensor) -> Tensor:
    """The class of the highest score along axis 1: scores ``[N, classes, ...]`` to int64 ``[N, ...]``.

    >>> classes(torch.tensor([[0.1, 0.9], [2.0, 1.0]])).tolist()
    [1, 0]
    """
    return output.argmax(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixup:
    """Batches whose inputs are mixed with other inputs of the batch; the targets come from the teacher's outputs.

    >>> mixed = Mixup(batches=[torch.randn(8, 4)], teacher=nn.Linear(4, 3))
    >>> [(tuple(inputs.shape), tuple(targets.shape)) for inputs, targets in mixed]
    [((8, 4), (8,))]

    :param batches: batches ``(inputs, targets)`` or ``inputs``; inputs are float tensors ``[N, ...]``, targets are not used.
    :param alpha: parameter of the Beta distribution: near 0 inputs are hardly mixed, at 1 the share is uniform in [0, 1].
    :param judge: computes the targets from the teacher's output.
    :raises UsageError: ``alpha`` is not positive.
    :raises DataError: (in a pass) the inputs are not float tensors.
    """

    batches: Iterable[Any]
    teacher: nn.Module
    alpha: Annotated[float, Range(gt=0, example=1.0)] = 1.0
    judge: Judge = classes

    def __post_init__(self) -> None:
        check(self, "mixup")

    def __len__(self) -> int:
        """The number of batches. Raises TypeError when ``batches`` has no length."""
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
    """Batches of Gaussian noise; the targets come from the teacher's outputs.

    >>> noise = Noise(teacher=nn.Linear(4, 3), shape=(8, 4), count=2)
    >>> [(tuple(inputs.shape), tuple(targets.shape)) for inputs, targets in noise]
    [((8, 4), (8,)), ((8, 4), (8,))]

    :param shape: shape of the inputs of a batch, ``(N, ...)``.
    :param count: number of batches in a pass, at least 1.
    :param judge: computes the targets from the teacher's output.
    :raises UsageError: a setting is out of range.
    """

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
    """Settings of :func:`synthesized`, which optimizes Gaussian noise with ``steps`` steps of Adam on each batch.

    ``temperature`` is τ and ``concentration`` is β. ``statistics`` is s, used for networks with batch normalization, and
    ``smoothness`` is v, used for images ``[N, C, H, W]``. ``bounds`` are the lowest and highest value of an input. Raises
    UsageError for values out of range.
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
    """Synthesize inputs that a classifier assigns to its classes; the targets are the classes it assigns, int64 ``[N]``.

    >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> batches = synthesized(teacher, (6, 4), 2, Synthesis(steps=5))
    >>> [tuple(inputs.shape) for inputs, _ in batches]
    [(6, 4), (6, 4)]

    :param shape: shape of the inputs of a batch, ``(N, ...)``.
    :param count: number of batches.
    :param settings: None for the defaults of :class:`Synthesis`.
    :raises NotApplicable: the teacher's output is not the ``[N, classes]`` of its last linear layer.
    :raises DataError: the optimization diverged.
    """
    settings = Synthesis() if settings is None else settings
    with torch.random.fork_rng(), _frozen(teacher):
        torch.manual_seed(seed)
        similarity_CC = class_similarity(teacher, shape)
        made = [_batch(teacher, shape, similarity_CC, settings) for _ in range(count)]
    inputs, targets = (torch.cat(parts) for parts in zip(*made, strict=True))
    return Batches(inputs, targets, shape[0], shuffle=True)


def class_similarity(teacher: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix c of cosines between the classes' output weights, ``[classes, classes]``, each row scaled to [0, 1]."""
    last = next((m for m in reversed(list(teacher.modules())) if isinstance(m, nn.Linear)), None)
    with evaluating(teacher):
        output = call(teacher, torch.zeros((2, *shape[1:])))
    if last is None or not isinstance(output, Tensor) or output.shape != (2, last.out_features):
        raise NotApplicable(
            "synthesized: the teacher must end in a linear layer with output [N, classes], whose weights say which classes are "
            "similar."
        )
    weight_CI = functional.normalize(last.weight.detach(), dim=1)
    cosine_CC = weight_CI @ weight_CI.T
    low, high = cosine_CC.min(1, keepdim=True).values, cosine_CC.max(1, keepdim=True).values
    return (cosine_CC - low) / (high - low).clamp_min(torch.finfo(cosine_CC.dtype).tiny)


def _batch(teacher: nn.Module, shape: tuple[int, ...], similarity_CC: Tensor, settings: Synthesis) -> tuple[Tensor, Tensor]:
    """One batch of synthesized inputs and the classes that the teacher assigns to them."""
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
    """Append the distance of a batch's mean and variance from the running statistics of a normalization layer."""
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
    """The targets that ``judge`` computes from the teacher's output for the inputs."""
    with evaluating(teacher):
        return judge(call(teacher, inputs))

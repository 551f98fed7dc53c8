"""Small models of every supported kind, on which the contract is checked, each with a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.calibration.prepare import prepare
from kogata.job import Job, Task

CLASSES = 6
WORDS = 40
HALF = "float16"  # the model that cannot be trained


class ConvNet(nn.Module):
    """Convolutions, batch normalization and linear layers."""

    def __init__(self, convolution: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv = convolution(3, 16, 3, padding=1, stride=2)
        self.norm, self.first = nn.BatchNorm2d(16), nn.ReLU()
        self.deep, self.second = nn.Conv2d(16, 24, 3), nn.ReLU()
        self.hidden, self.third = nn.Linear(24 * 4, 32), nn.ReLU()
        self.out = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.norm(self.conv(images)))
        x = self.second(self.deep(x)).flatten(1)
        return self.out(self.third(self.hidden(x)))


class PaddedConv2d(nn.Conv2d):
    """A user-defined layer that pads its input itself, asymmetrically, and uses its weight directly."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Attention(nn.Module):
    """A transformer layer and an attention layer. The joint projection of the latter is not the weight of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        x = self.encoder(sequence)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(x.mean(1))


class Words(nn.Module):
    """The mean of embeddings, and a linear layer. With ``tied``, the linear layer shares the weight of the embedding."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24, padding_idx=0)
        self.out = nn.Linear(24, WORDS if tied else CLASSES)
        if tied:
            self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embedding(tokens).mean(1))


class Stack(nn.Module):
    """A stack of equal blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.ReLU()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(3))
        self.out = nn.Linear(16 * 16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.conv(images))
        for block in self.blocks:
            x = block(x)
        return self.out(x.flatten(1))


def _images() -> Tensor:
    return torch.randn(12, 3, 8, 8)


def _tokens() -> Tensor:
    return torch.randint(0, WORDS, (12, 5))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "conv": (ConvNet, _images),
    "subclass": (lambda: ConvNet(PaddedConv2d), lambda: torch.randn(12, 3, 9, 9)),
    "attention": (Attention, lambda: torch.randn(12, 4, 16)),
    "embedding": (lambda: Words(tied=False), _tokens),
    "tied": (lambda: Words(tied=True), _tokens),
    "stack": (Stack, _images),
    "float16": (lambda: ConvNet().half(), lambda: _images().half()),
    "bfloat16": (lambda: ConvNet().bfloat16(), lambda: _images().bfloat16()),
}


def job_of(name: str, **task: Any) -> Job:
    """A new job on the model ``name`` of :data:`MODELS`, with the same values each time; ``task`` overrides fields of its task.

    >>> job_of("conv").task.name
    'conv'
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        build, inputs = MODELS[name]
        model = build()
        _spread(model)
        batches = [(inputs(), torch.randint(0, CLASSES, (12,))) for _ in range(3)]
    fields: dict[str, Any] = {
        "calibration": batches[:2],
        "train": batches,
        "loss": functional.cross_entropy,
        "name": name,
    }
    return prepare(model, Task(**fields | task))


def _spread(model: nn.Module) -> None:
    """Give biases and normalization layers random values. Their initial zeros and ones would hide a lost or swapped tensor."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.3, 0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            with torch.no_grad():
                parameter.add_(torch.rand_like(parameter) * 0.2)

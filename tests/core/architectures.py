"""Small models of every kind of coupling between channels, with inputs and the layers whose channels go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kogata.network.channels.groups import Coupling, Cut
from kogata.tasks.networks import lenet5, lenet300
from kogata.testing.models import Words


class Block(nn.Module):
    """A residual block; where the width changes, a projection on the shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return torch.relu_(y)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Block(6, 6), nn.MaxPool2d(2), Block(6, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 4),
    )  # fmt: skip


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), nn.Hardswish(),  # depthwise, two channels made from each
        nn.Conv2d(12, 5, 1), nn.Flatten(), nn.Linear(5 * 4, 4),
    )  # fmt: skip


class Fire(nn.Module):
    """Two branches, concatenated; and the inputs with them."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 7, 3, padding=1)
        self.out = nn.Linear(5 + 7 + 3, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(images))
        x = torch.cat([torch.tanh(self.one(x)), torch.sigmoid(self.three(x)), images], dim=1)
        return self.out(x.mean((2, 3)))


class Excited(nn.Module):
    """Squeeze and excitation: channels scaled by what their means say; an attention map of one channel over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.map, self.out = nn.Conv2d(8, 1, 1), nn.ConvTranspose2d(8, 3, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        x = x * scale[:, :, None, None]
        return self.out(x * self.map(x).sigmoid())


class Named(nn.Module):
    """Named inputs, several outputs, one of them in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.seen, self.head = nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, *, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = torch.relu(self.left(x)) + self.right(y)
        seen = self.seen(z)
        return {"out": self.out(z), "seen": seen, "head": self.head(seen)}


def images() -> Tensor:
    return torch.randn(3, 3, 6, 6)


ARCHITECTURES: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Any], set[frozenset[str]]]] = {
    "lenet300": (lenet300, lambda: torch.randn(3, 1, 28, 28), {frozenset({"fc1"}), frozenset({"fc2"})}),
    "lenet5": (lenet5, lambda: torch.randn(3, 1, 28, 28), {frozenset({"conv1"}), frozenset({"conv2"}), frozenset({"fc1"})}),
    "resnet": (
        resnet, images,
        {frozenset({"0", "1", "3.conv2", "3.norm2"}), frozenset({"3.conv1", "3.norm1"}), frozenset({"5.conv1", "5.norm1"}),
         frozenset({"5.conv2", "5.norm2", "5.shortcut"})},
    ),
    "separable": (separable, images, {frozenset({"0", "1", "3", "4"}), frozenset({"6"})}),
    "fire": (Fire, images, {frozenset({"squeeze"}), frozenset({"one"}), frozenset({"three"})}),
    "excited": (Excited, images, {frozenset({"conv", "up"}), frozenset({"down"})}),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), lambda: torch.randn(3, 5, 8), {frozenset({"linear1"})},
    ),
    "named": (Named, lambda: {"x": torch.randn(3, 6), "y": torch.randn(3, 5)}, {frozenset({"left", "right"})}),
    "embedding": (lambda: Words(tied=False), lambda: torch.randint(0, 40, (3, 5)), {frozenset({"embedding"})}),
    "tied": (lambda: Words(tied=True), lambda: torch.randint(0, 40, (3, 5)), {frozenset({"embedding"})}),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Any]:
    """A model with unlike numbers everywhere, in evaluation mode, and inputs for it."""
    build, inputs, _ = ARCHITECTURES[name]
    model = build().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model, inputs()


def some(coupling: Coupling) -> list[Cut]:
    """A random part of the channels of each group, at least one of them stays."""
    return [(group, torch.randperm(group.channels)[: int(torch.randint(1, group.channels, ()))]) for group in coupling.groups]

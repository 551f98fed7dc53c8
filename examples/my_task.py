"""A task file: your model and your data, in the shape that Kogata reads. Copy it and fill in your own.

    kogata compress examples/my_task.py --recipe deep-compression -o runs/mine

Only model() and calibration() are needed. With train() and loss() a method can train, with evaluate() the report tells
the score, with validate() a search or early stopping can choose without a look at the test data. This example tells
three kinds of machine vibration apart, on signals that it makes itself.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3
SAMPLES = 64


def model() -> nn.Module:
    """Return the trained model.

    Yours would be read from a file: ``net.load_state_dict(safetensors.torch.load_file("my_weights.safetensors"))``.
    """
    net = nn.Sequential(
        nn.Conv1d(1, 16, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(8),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(3):
        for signals, labels in train():
            optimizer.zero_grad()
            loss(net(signals), labels).backward()
            optimizer.step()
    return net.eval()


def calibration() -> DataLoader[Any]:
    """Return a few batches that look like what the model will see; labels are not needed."""
    return DataLoader(_signals(512, seed=1), batch_size=64)


def train() -> DataLoader[Any]:
    """Return the training batches, as (inputs, targets) pairs."""
    return DataLoader(_signals(3000, seed=1), batch_size=64, shuffle=True)


def loss(output: Tensor, targets: Tensor) -> Tensor:
    """Return what training makes small."""
    return nn.functional.cross_entropy(output, targets)


def evaluate(net: nn.Module) -> float:
    """Return the score of the report, higher is better: here the accuracy in percent on test data."""
    return _accuracy(net, seed=2)


def validate(net: nn.Module) -> float:
    """Return the same score on other held-out data, which may be looked at while choosing."""
    return _accuracy(net, seed=3)


def _accuracy(net: nn.Module, seed: int) -> float:
    signals, labels = _signals(1000, seed).tensors
    net.eval()
    with torch.no_grad():
        return 100 * int((net(signals).argmax(1) == labels).sum()) / len(labels)


def _signals(count: int, seed: int) -> TensorDataset:
    """Noisy vibrations: smooth running, a second harmonic (misalignment), or short knocks (a damaged bearing)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    time = torch.arange(SAMPLES) / SAMPLES
    speed = 2 + 2 * torch.rand(count, 1, generator=random)
    angle = 2 * math.pi * (speed * time + torch.rand(count, 1, generator=random))
    harmonic = 0.5 * torch.sin(2 * angle) * (labels == 1).unsqueeze(1)
    knocks = 1.2 * torch.relu(torch.cos(angle)).pow(16) * torch.cos(6 * angle) * (labels == 2).unsqueeze(1)
    noise = 0.3 * torch.randn(count, SAMPLES, generator=random)
    return TensorDataset((torch.sin(angle) + harmonic + knocks + noise).unsqueeze(1), labels)

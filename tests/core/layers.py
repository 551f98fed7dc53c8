"""Layers of every kind that multiplies a weight, each with its weight's matrices and their inputs by explicit loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Rows = Mapping[str, list[tuple[Tensor, Tensor]]]
"""For each weight, for each group of rows that has inputs of its own, these rows ``[O, I]`` and the inputs ``[N, I]``."""


@dataclass(frozen=True)
class Case:
    """A model, one batch, and the rows that its weights multiply in this batch, as loops find them."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    rows: Callable[[nn.Module, Tensor], Rows]


class Conv1D(nn.Module):
    """The layer of the GPT-2 of transformers: a linear layer whose weight is stored as ``[inputs, outputs]``."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Split(nn.Module):
    """Queries, keys and values in one matrix ``[inputs, 3 · outputs]``."""

    def __init__(self) -> None:
        super().__init__()
        self.joint = Conv1D(36, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.joint(x).split(12, -1)
        return q * k + v


class EinsumExperts(nn.Module):
    """All experts in one parameter, and one product of three operands that sums over the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 16, 12)), nn.Parameter(torch.randn(3, 12, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bd, edh -> beh", x, self.up).relu()
        return torch.einsum("be,beh,ehd->bd", self.gate(x).softmax(-1), hidden, self.down)


class BatchedExperts(nn.Module):
    """Experts ``[experts, outputs, inputs]`` over tokens of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, 16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.view(3, -1, 16), self.weight.transpose(1, 2))


class LoopedExperts(nn.Module):
    """A gate and a value of each expert, for the tokens that are sent there; the last expert gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, 16))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for expert in range(2):
            gate, value = self.weight[expert].chunk(2)
            tokens = x[expert::2]
            found.append(functional.linear(tokens, gate).sigmoid() * functional.linear(tokens, value))
        return torch.cat(found)


class GroupedExperts(nn.Module):
    """Each expert multiplies the tokens sent to it, in one operation; the second gets none, and the last ones go nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12, 16))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([len(x) // 3, len(x) // 3, len(x) // 2, len(x) - 2], dtype=torch.int32)
        return functional.grouped_mm(x, self.weight.transpose(1, 2), offs=ends)[:-2]


class Cross(nn.Module):
    """Attention whose keys and values come from elsewhere than its queries."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.attention, self.same = nn.MultiheadAttention(16, 2, batch_first=True), same

    def forward(self, x: Tensor) -> Tensor:
        others = x.flip(1).cumsum(1)
        return self.attention(x, others, others if self.same else 2 * others, need_weights=False)[0]


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019, 1903.10520)."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class Padded(nn.Conv2d):
    """A layer that pads by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(input, (1, 2, 1, 2)), self.weight, self.bias, self.stride)


class TiedWords(nn.Module):
    """An output layer with the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(40, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.mix(self.words(tokens)), self.words.weight)


class Recurrent(nn.Module):
    """A recurrent layer, of which the first output counts."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class PackedWords(Recurrent):
    """Sequences of several lengths."""

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 6, 5]), batch_first=True, enforce_sorted=False)
        return self.layer(packed)[0].data


def patches(layer: nn.Module, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """``[N, C · kernel]`` of an input that is padded already, place by place."""
    sizes = [(length - size) // step + 1 for length, size, step in zip(x.shape[2:], kernel, stride, strict=True)]
    rows = []
    for image in x:
        for place in torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(kernel)).tolist():
            at = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, stride, kernel, strict=True))
            rows.append(image[(slice(None), *at)].flatten())
    return torch.stack(rows)


def transposed_rows(layer: nn.ConvTranspose2d, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By the definition: input place p and kernel place k meet at output place ``p · stride + k · dilation − padding``."""
    groups, axes = layer.groups, len(layer.kernel_size)
    with torch.no_grad():
        outputs = layer(x)
    weight = layer.weight.detach().unflatten(0, (groups, -1))  # [G, I, O, *kernel]
    places = torch.cartesian_prod(*(torch.arange(size) for size in outputs.shape[2:])).reshape(-1, axes).tolist()
    offsets = torch.cartesian_prod(*(torch.arange(size) for size in layer.kernel_size)).reshape(-1, axes).tolist()
    found = []
    for group, part in zip(weight, x.unflatten(1, (groups, -1)).unbind(1), strict=True):
        rows = torch.zeros(len(x), len(places), part.shape[1], len(offsets))
        for n, place in enumerate(places):
            for k, offset in enumerate(offsets):
                at = [
                    p + pad - o * d
                    for p, o, pad, d in zip(place, offset, layer.padding, layer.dilation, strict=True)
                ]  # fmt: skip
                inside = all(
                    a % s == 0 and 0 <= a // s < size for a, s, size in zip(at, layer.stride, part.shape[2:], strict=True)
                )
                if inside:
                    source = [a // s for a, s in zip(at, layer.stride, strict=True)]
                    rows[:, n, :, k] = part[(slice(None), slice(None), *source)]
        found.append((group.transpose(0, 1).flatten(1), rows.flatten(2).flatten(0, 1)))
    return found


def _transposed(layer: nn.Module, x: Tensor) -> Rows:
    return {"weight": transposed_rows(layer, x)}  # type: ignore[arg-type]


def _conv3d(layer: nn.Module, x: Tensor) -> Rows:
    weight = layer.get_parameter("weight").detach()
    return {"weight": [(weight.flatten(1), patches(layer, functional.pad(x, (1,) * 6), (2, 3, 2), (1, 2, 1)))]}


def _padded(layer: nn.Module, x: Tensor) -> Rows:
    weight = layer.get_parameter("weight").detach()
    return {"weight": [(weight.flatten(1), patches(layer, functional.pad(x, (1, 2, 1, 2)), (3, 3), (2, 2)))]}


def _standardized(layer: nn.Module, x: Tensor) -> Rows:
    weight = layer.get_parameter("weight").detach().flatten(1)
    return {"weight": [(weight, patches(layer, functional.pad(x, (1, 1, 1, 1)), (3, 3), (1, 1)))]}


def _conv1d(model: nn.Module, x: Tensor) -> Rows:
    return {"joint.weight": [(model.get_parameter("joint.weight").detach().T, x.flatten(0, 1))]}


def _einsum(model: nn.Module, x: Tensor) -> Rows:
    up, down = (model.get_parameter(name).detach() for name in ("up", "down"))
    gate = model.get_submodule("gate")(x).softmax(-1).detach()
    inner = [gate[:, e : e + 1] * (x @ up[e]).relu() for e in range(3)]
    return {
        "gate.weight": [(model.get_parameter("gate.weight").detach(), x)],
        "up": [(up[e].T, x) for e in range(3)], "down": [(down[e].T, inner[e]) for e in range(3)],
    }  # fmt: skip


def _bmm(model: nn.Module, x: Tensor) -> Rows:
    weight = model.get_parameter("weight").detach()
    return {"weight": [(weight[e], part) for e, part in enumerate(x.view(3, -1, 16))]}


def _looped(model: nn.Module, x: Tensor) -> Rows:
    weight = model.get_parameter("weight").detach()
    return {"weight": [(weight[e], x[e::2]) for e in range(2)]}


def _grouped(model: nn.Module, x: Tensor) -> Rows:
    weight, ends = model.get_parameter("weight").detach(), [len(x) // 3, len(x) // 2, len(x) - 2]
    starts = [0, *ends]
    return {"weight": [(weight[e], x[starts[n] : ends[n]]) for n, e in enumerate((0, 2, 3))]}


def _cross(model: nn.Module, x: Tensor) -> Rows:
    layer, others = model.get_submodule("attention"), x.flip(1).cumsum(1)
    three = [x, others, others if model.same else 2 * others]  # type: ignore[attr-defined]
    joint, bias = layer.get_parameter("in_proj_weight").detach(), layer.get_parameter("in_proj_bias").detach()
    q, k, v = (
        (inputs @ weight.T + b).unflatten(-1, (2, 8)).transpose(1, 2)
        for inputs, weight, b in zip(three, joint.chunk(3), bias.chunk(3), strict=True)
    )
    heads = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16)
    return {
        "attention.in_proj_weight": [(w, i.flatten(0, 1)) for w, i in zip(joint.chunk(3), three, strict=True)],
        "attention.out_proj.weight": [(layer.get_parameter("out_proj.weight").detach(), heads)],
    }  # fmt: skip


def _tied(model: nn.Module, tokens: Tensor) -> Rows:
    weight, mix = model.get_parameter("words.weight").detach(), model.get_submodule("mix")
    inputs = weight[tokens.flatten()]
    return {
        "words.weight": [(weight, mix(inputs).detach())],
        "mix.weight": [(model.get_parameter("mix.weight").detach(), inputs)],
    }


def _gates(layer: nn.Module, x: Tensor, h: Tensor, c: Tensor, end: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden state, cell and what is projected of one step of a cell, by its equations."""
    ih, hh = (layer.get_parameter(f"weight_{name}_{end}").detach() for name in ("ih", "hh"))
    b_ih, b_hh = (layer.get_parameter(f"bias_{name}_{end}").detach() for name in ("ih", "hh"))
    left, right = x @ ih.T + b_ih, h @ hh.T + b_hh
    if isinstance(layer, nn.LSTM):
        i, f, g, o = (left + right).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        inner = o.sigmoid() * c.tanh()
        return (layer.get_parameter(f"weight_hr_{end}").detach() @ inner if layer.proj_size else inner), c, inner
    if isinstance(layer, nn.GRU):
        (lr, lz, ln), (rr, rz, rn) = left.chunk(3), right.chunk(3)
        r, z = (lr + rr).sigmoid(), (lz + rz).sigmoid()
        h = (1 - z) * (ln + r * rn).tanh() + z * h
        return h, c, h
    h = (left + right).relu()
    return h, c, h


def recurrent_rows(model: nn.Module, sequences: list[Tensor]) -> Rows:
    """Step by step, sequence by sequence, layer by layer and direction by direction."""
    layer = model.get_submodule("layer")
    assert isinstance(layer, nn.RNNBase)
    seen: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for number in range(layer.num_layers):
        outputs: list[list[Tensor]] = [[] for _ in sequences]
        for end in [f"l{number}", *([f"l{number}_reverse"] if layer.bidirectional else [])]:
            for n, sequence in enumerate(sequences):
                h, c = torch.zeros(layer.proj_size or layer.hidden_size), torch.zeros(layer.hidden_size)
                steps = range(len(sequence))[:: -1 if "reverse" in end else 1]
                states = {}
                for t in steps:
                    read = {"ih": sequence[t], "hh": h}
                    h, c, inner = _gates(layer, sequence[t], h, c, end)
                    states[t] = h
                    for name, row in (read | ({"hr": inner} if layer.proj_size else {})).items():
                        weight = layer.get_parameter(f"weight_{name}_{end}").detach()
                        seen.setdefault(f"layer.weight_{name}_{end}", (weight, []))[1].append(row)
                outputs[n].append(torch.stack([states[t] for t in range(len(sequence))]))
        sequences = [torch.cat(parts, -1) for parts in outputs]
    return {name: [(weight, torch.stack(rows))] for name, (weight, rows) in seen.items()}


def _padded_sequences(model: nn.Module, x: Tensor) -> Rows:
    return recurrent_rows(model, list(x))


def _packed_sequences(model: nn.Module, x: Tensor) -> Rows:
    return recurrent_rows(model, [part[:length] for part, length in zip(x, (3, 6, 5), strict=True)])


def _images() -> Tensor:
    return torch.randn(3, 4, 7, 6)


def _sequence() -> Tensor:
    return torch.randn(3, 6, 16)


CASES: Mapping[str, Case] = {
    "conv3d": Case(
        lambda: nn.Conv3d(2, 8, (2, 3, 2), stride=(1, 2, 1), padding=1), lambda: torch.randn(2, 2, 3, 5, 4), _conv3d
    ),
    "padded": Case(lambda: Padded(4, 12, 3, stride=2), _images, _padded),
    "standardized": Case(lambda: Standardized(4, 12, 3, padding=1), _images, _standardized),
    "transposed": Case(
        lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1), _images, _transposed
    ),
    "transposed_groups": Case(
        lambda: nn.ConvTranspose2d(4, 8, (3, 2), stride=(2, 3), dilation=(2, 1), groups=2, padding=(1, 0)), _images, _transposed
    ),
    "transposed1d": Case(lambda: nn.ConvTranspose1d(4, 8, 4, stride=2), lambda: torch.randn(3, 4, 7), _transposed),
    "conv1d_gpt2": Case(Split, _sequence, _conv1d),
    "einsum": Case(EinsumExperts, lambda: torch.randn(30, 16), _einsum),
    "bmm": Case(BatchedExperts, lambda: torch.randn(30, 16), _bmm),
    "looped": Case(LoopedExperts, lambda: torch.randn(30, 16), _looped),
    "grouped": Case(GroupedExperts, lambda: torch.randn(30, 16), _grouped),
    "cross": Case(lambda: Cross(same=True), _sequence, _cross),
    "qkv": Case(lambda: Cross(same=False), _sequence, _cross),
    "tied": Case(TiedWords, lambda: torch.randint(0, 40, (6, 5)), _tied),
    "lstm": Case(
        lambda: Recurrent(nn.LSTM(16, 12, num_layers=2, bidirectional=True, batch_first=True)), _sequence, _padded_sequences
    ),
    "lstm_projected": Case(
        lambda: Recurrent(nn.LSTM(16, 12, proj_size=5, num_layers=2, bidirectional=True, batch_first=True)), _sequence,
        _padded_sequences,
    ),
    "gru": Case(lambda: Recurrent(nn.GRU(16, 12, num_layers=2, batch_first=True)), _sequence, _padded_sequences),
    "rnn": Case(lambda: Recurrent(nn.RNN(16, 12, nonlinearity="relu", batch_first=True)), _sequence, _padded_sequences),
    "packed": Case(
        lambda: PackedWords(nn.LSTM(16, 12, num_layers=2, bidirectional=True, batch_first=True)), _sequence, _packed_sequences
    ),
}  # fmt: skip

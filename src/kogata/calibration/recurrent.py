"""The inputs of a recurrent layer's weights: of ``weight_ih`` the layer's inputs, of ``weight_hh`` the state before each step.

PyTorch runs all layers and directions of an ``nn.LSTM`` in one operation. Here they are run one after another, so that each
weight meets what the weights before it have become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kogata.job import Kind
from kogata.network.operations import Use

_LAYERS: Mapping[Any, bool] = {torch.lstm: True, torch.gru: False, torch.rnn_tanh: False, torch.rnn_relu: False}
_CELLS = frozenset({torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell})
RECURRENT = frozenset(_LAYERS) | _CELLS
"""The functions that run a recurrent layer; of those that run layers, whether the state has a cell besides."""


def recurrent_uses(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], current: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Use]]:
    """Each weight of a call with its use, in the order in which they may be replaced.

    ``current`` gives what a tensor of the call has become. PyTorch's own layers pass all arguments by position.
    """
    if func in _CELLS:
        state = args[1][0] if isinstance(args[1], tuple | list) else args[1]
        yield args[2], _use(lambda: args[0])
        yield args[3], _use(lambda: state)
        return
    run = _Run.of(func, args)
    for layer in range(run.layers):
        for direction in range(run.directions):
            own = run.weights(layer, direction)
            yield own[0], _use(lambda: run.inputs)
            yield own[1], _use(lambda layer=layer, direction=direction: run.before(layer, direction, current))
            if run.projected:
                yield own[-1], _use(lambda layer=layer, direction=direction: run.unprojected(layer, direction, current))
        if layer + 1 < run.layers:
            run.inputs = run.outputs(layer, current)


def _use(rows: Callable[[], Tensor]) -> Use:
    def pieces() -> Iterator[Tensor]:
        inputs = rows().detach()
        yield inputs.reshape(-1, inputs.shape[-1])

    return Use(kind=Kind.LINEAR, roles="oi", rows=pieces)


@dataclass
class _Run:
    """One call. Sequences lie step after step, as in a PackedSequence: ``sizes[t]`` rows of step t."""

    func: Any
    inputs: Tensor  # of the layer that is looked at: [rows, features]
    sizes: Tensor
    states: tuple[Tensor, ...]  # [layers · directions, samples, features]
    flat: Sequence[Tensor]
    biased: bool
    layers: int
    directions: int

    @classmethod
    def of(cls, func: Any, args: Sequence[Any]) -> _Run:
        if isinstance(args[3], bool):  # (input, state, weights, bias, layers, dropout, train, bidirectional, batch_first)
            inputs, state, flat, biased, layers, _, _, both, first = args
            inputs = cast("Tensor", inputs).transpose(0, 1) if first else inputs
            sizes = torch.full((inputs.shape[0],), inputs.shape[1])
            inputs = inputs.flatten(0, 1)
        else:  # the same with the number of rows of each step, and rows that lie step after step
            inputs, sizes, state, flat, biased, layers, _, _, both = args
        states = tuple(state) if _LAYERS[func] else (state,)
        return cls(func, inputs, sizes, states, flat, biased, layers, 2 if both else 1)

    @property
    def projected(self) -> bool:
        """Whether an LSTM's output is projected to fewer features."""
        return len(self.weights(0, 0)) == 3 + 2 * self.biased

    def weights(self, layer: int, direction: int) -> Sequence[Tensor]:
        """``weight_ih, weight_hh, bias_ih, bias_hh, weight_hr``, as far as there are any."""
        count = len(self.flat) // (self.layers * self.directions)
        at = layer * self.directions + direction
        return self.flat[at * count : (at + 1) * count]

    def outputs(self, layer: int, current: Callable[[Tensor], Tensor]) -> Tensor:
        """The outputs ``[rows, directions · features]`` of one layer."""
        part = slice(layer * self.directions, (layer + 1) * self.directions)
        states = tuple(state[part] for state in self.states)
        flat = [current(tensor) for n in range(self.directions) for tensor in self.weights(layer, n)]
        state = states if _LAYERS[self.func] else states[0]
        return self.func(self.inputs, self.sizes, state, flat, self.biased, 1, 0.0, False, self.directions == 2)[0]

    def before(self, layer: int, direction: int, current: Callable[[Tensor], Tensor]) -> Tensor:
        """The state that each step of one direction begins with, ``[rows, features]``."""
        outputs = self.outputs(layer, current).chunk(self.directions, -1)[direction]
        blocks = outputs.split(self.sizes.tolist())
        first = self.states[0][layer * self.directions + direction]
        return torch.cat([self._previous(blocks, first, step, direction) for step in range(len(blocks))])

    def unprojected(self, layer: int, direction: int, current: Callable[[Tensor], Tensor]) -> Tensor:
        """What the last weight of an LSTM with projections reads, ``[rows, features]``."""
        ih, hh, *biases = [current(tensor) for tensor in self.weights(layer, direction)][:-1]
        gates = self.inputs @ ih.T + self.before(layer, direction, current) @ hh.T + sum(biases)
        blocks, cell = gates.split(self.sizes.tolist()), self.states[1][layer * self.directions + direction]
        cells: dict[int, Tensor] = {}
        found: dict[int, Tensor] = {}
        for step in range(len(blocks))[:: -1 if direction else 1]:
            enter, forget, new, out = blocks[step].chunk(4, -1)
            kept = self._previous(cells, cell, step, direction)
            cells[step] = forget.sigmoid() * kept + enter.sigmoid() * new.tanh()
            found[step] = out.sigmoid() * cells[step].tanh()
        return torch.cat([found[step] for step in range(len(blocks))])

    def _previous(self, blocks: Any, first: Tensor, step: int, direction: int) -> Tensor:
        """What the step before left for each row of a step; ``first`` for sequences that begin with it."""
        count = int(self.sizes[step])
        if not direction:
            return blocks[step - 1][:count] if step else first[:count]
        if step + 1 == len(self.sizes):
            return first[:count]
        later = blocks[step + 1]
        return torch.cat([later, first[len(later) : count]])

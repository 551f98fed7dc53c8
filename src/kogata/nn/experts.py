"""A sparsely gated mixture of experts: a layer of many networks, of which each input uses only a few.

Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean, "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", ICLR 2017 (1701.06538), equations 1 to 11 (8 to 11 are in the appendix):
    y = Σ_i G(x)_i E_i(x),   G(x) = softmax over the k largest of H(x) = x W_g + z ⊙ softplus(x W_noise),   z ~ N(0, 1),
and G(x)_i = 0 for the others. Two losses balance the experts; CV is the coefficient of variation over the experts, that is the
standard deviation over the mean, and the sums run over the inputs x of a batch:
    w · CV(Σ_x G(x)_i)² + w · CV(Σ_x P(x, i))²,   P(x, i) = Φ((x W_g − kth excluding i of H(x)) / softplus(x W_noise)),
where P(x, i) is the probability that expert i is among the k largest when only its own noise is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kogata.errors import UsageError


class Experts(nn.Module):
    """A mixture of experts: ``[..., features]`` to ``[..., outputs]``, each input through ``k`` of the ``experts``.

    After a forward pass in training mode, add the attribute ``penalty``, a scalar tensor, to the loss. Noise is drawn in
    training mode only.

    >>> layer = Experts([nn.Linear(4, 3) for _ in range(8)], features=4, k=2)
    >>> output = layer(torch.randn(5, 4))
    >>> tuple(output.shape), layer.penalty.ndim
    ((5, 3), 0)

    :param experts: modules that each map ``[n, features]`` to ``[n, outputs]``, for any n, 0 included.
    :param features: size of the last axis of the inputs.
    :param k: number of experts for each input.
    :param balance: the weight w of both balancing losses.
    :raises UsageError: unless 1 ≤ k ≤ the number of experts.
    """

    def __init__(self, experts: Sequence[nn.Module], features: int, k: int, *, balance: float = 0.1) -> None:
        super().__init__()
        if not 1 <= k <= len(experts):
            raise UsageError(f"experts: k is {k}; expected 1 to {len(experts)}, the number of experts.")
        self.experts, self.k, self.balance = nn.ModuleList(experts), k, balance
        self.gate = nn.Linear(features, len(experts), bias=False)
        self.noise = nn.Linear(features, len(experts), bias=False)
        nn.init.zeros_(self.gate.weight)  # the paper's initialization: every expert has the same load
        nn.init.zeros_(self.noise.weight)
        self.penalty = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., features]`` to ``[..., outputs]``, and update ``penalty`` in training mode."""
        x_ND = x.flatten(0, -2)
        clean_NE = self.gate(x_ND)
        deviation_NE = functional.softplus(self.noise(x_ND))
        noisy_NE = clean_NE + deviation_NE * torch.randn_like(clean_NE) if self.training else clean_NE
        top = noisy_NE.topk(self.k, dim=1)
        gates_NE = torch.zeros_like(clean_NE).scatter(1, top.indices, top.values.softmax(1))
        if self.training:
            self.penalty = self.balance * (squared_variation(gates_NE.sum(0)) + self._load(clean_NE, noisy_NE, deviation_NE))
        rows = [gates.nonzero().flatten() for gates in gates_NE.T]
        parts = [expert(x_ND[some]) for expert, some in zip(self.experts, rows, strict=True)]
        scaled = [part * gates_NE[some, [e]][:, None] for e, (part, some) in enumerate(zip(parts, rows, strict=True))]
        # Sizes come from shapes, not from len(): an exported graph then takes inputs of any number.
        output_NO = torch.cat(scaled).new_zeros((x_ND.shape[0], parts[0].shape[1]))
        output_NO = output_NO.index_add(0, torch.cat(rows), torch.cat(scaled))
        return output_NO.reshape((*x.shape[:-1], output_NO.shape[1]))

    def _load(self, clean_NE: Tensor, noisy_NE: Tensor, deviation_NE: Tensor) -> Tensor:
        """CV² of the loads Σ_x P(x, i); 0 when every input uses all experts."""
        if self.k == len(self.experts):
            return clean_NE.new_zeros(())
        return squared_variation(probability(clean_NE, noisy_NE, deviation_NE, self.k).sum(0))


def probability(clean_NE: Tensor, noisy_NE: Tensor, deviation_NE: Tensor, k: int) -> Tensor:
    """P(x, i) ``[N, E]``: the probability that expert i is among the k largest when its noise is drawn again; needs k < E."""
    top_NK = noisy_NE.topk(k + 1, dim=1).values
    inside_NE = noisy_NE >= top_NK[:, k - 1 : k]
    others_NE = torch.where(inside_NE, top_NK[:, k : k + 1], top_NK[:, k - 1 : k])  # the kth largest without i
    return torch.special.ndtr((clean_NE - others_NE) / deviation_NE)


def squared_variation(sums_E: Tensor) -> Tensor:
    """The squared coefficient of variation: variance over squared mean; 0 for a single expert."""
    return sums_E.var(correction=0) / (sums_E.mean().square() + torch.finfo(sums_E.dtype).eps)

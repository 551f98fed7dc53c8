"""One instance of every method, for the tests that every method must pass."""

from __future__ import annotations

from collections.abc import Mapping

from kogata.method import Method
from kogata.methods import SVD, Half, KMeans, MagnitudePruning, Recover, RoundToNearest, Wanda

CASES: Mapping[type[Method], Method] = {
    MagnitudePruning: MagnitudePruning(sparsity=0.6),
    Wanda: Wanda(sparsity=0.5),
    KMeans: KMeans(clusters=6),
    RoundToNearest: RoundToNearest(bits=4, group=16),
    Half: Half(),
    SVD: SVD(rank=0.25),
    Recover: Recover(epochs=1, learning_rate=1e-2),
}

# The models a method can do nothing for, and what its refusal must say.
REFUSED: Mapping[tuple[type[Method], str], str] = {
    (Wanda, "tied"): "this is embedding",
    (Half, "float16"): "would not get smaller",
    (Half, "bfloat16"): "would not get smaller",
}

# Second steps that a first step leaves no leaf for: the order is wrong whatever the weights are.
ILLEGAL: Mapping[type[Method], frozenset[type[Method]]] = {
    KMeans: frozenset({MagnitudePruning, Wanda, KMeans, RoundToNearest, SVD}),
    RoundToNearest: frozenset({MagnitudePruning, Wanda, KMeans, RoundToNearest, SVD}),
    MagnitudePruning: frozenset({Wanda, SVD}),
    Wanda: frozenset({Wanda, SVD}),
}

# Orders that are legal, but where the second of two methods with these settings has nothing left to gain.
FUTILE: frozenset[tuple[type[Method], type[Method]]] = frozenset({
    (MagnitudePruning, MagnitudePruning), (Half, Half),
    (RoundToNearest, Half),  # its scales are half precision already
})  # fmt: skip

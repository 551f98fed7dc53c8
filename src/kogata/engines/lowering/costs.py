"""The costs of operations in each engine. Lowering rules use them to choose between a dense layer and cheaper layers.

There is one ``Costs`` instance for each engine. The numbers are thresholds, measured once on a CPU, from which the cheaper
layers are faster. They do not predict times.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one engine. Numbers of entries are those of the dense matrix ``[outputs, inputs]`` to be replaced."""

    move: int
    """Cost of moving one activation between two layers, in multiply-adds."""

    separable: int
    """Largest kernel side for which two 1-d depthwise convolutions are no slower than one 2-d depthwise convolution."""

    chain: int
    """Fewest entries for which a chain of small products is faster. Below, the overhead of several operations dominates."""

    transforms: int
    """Fewest entries for which Fourier or Hadamard transforms are faster."""

    batched: int
    """Cost of one multiply-add in a batch of small products, in multiply-adds of one large product."""

    shortest: int
    """Smallest block of a circulant matrix for which a transform is faster than a dense product."""

    spectra: bool
    """Whether batched FFTs of any length are fast; circulant matrices are then multiplied by FFT."""

    cosines: int
    """Without ``spectra``: largest circulant block that is multiplied with matrices of cosines and sines; 0 for none."""

    fourier: int
    """Without ``spectra``: smallest single circulant block, a power of two, for which the engine's own FFT is faster."""

    kernel_blocks: int
    """Fewest circulant blocks along each side for which the compiled circular product is faster than FFTs."""

    kernel_rows: int
    """Largest batch for which the compiled circular product is faster than FFTs; 0 where the engine cannot call it."""

    stores: bool
    """Whether layers may hold weights that were computed from those in the file.

    A graph inside a file would store such weights a second time, so there they are computed when the graph is loaded.
    """


EAGER = Costs(
    move=32,  # measured in ONNX Runtime, not in PyTorch
    separable=3,
    chain=1 << 16, transforms=1 << 18, batched=3, shortest=16,
    spectra=True, cosines=0, fourier=0,
    kernel_blocks=8, kernel_rows=4,  # PyTorch's FFT has a large overhead for each call, which dominates for few inputs
    stores=True,
)  # fmt: skip

ONNXRUNTIME = Costs(
    move=32, separable=3, chain=1 << 16, transforms=1 << 18, batched=3, shortest=16,
    spectra=False, cosines=256, fourier=4096,  # its FFT is slow; short transforms are faster as matrix products
    kernel_blocks=0, kernel_rows=0,
    stores=False,
)  # fmt: skip

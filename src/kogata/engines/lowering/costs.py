"""What operations cost in each engine: the table by which a rule decides between cheaper layers and the dense one.

One ``Costs`` for each engine; a new engine is one more instance. The numbers say where the cheaper layers begin to be faster on
a CPU. They are thresholds measured once, not predictions of a time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one engine. Entries are entries of the dense matrix ``[outputs, inputs]`` that cheaper layers replace."""

    move: int
    """Cost of moving one activation between two layers, in multiply-adds."""

    separable: int
    """Longest kernel side for which two one-dimensional depthwise convolutions are no slower than one of two dimensions."""

    chain: int
    """Fewest entries for which a chain of small products pays: below, calling several operations costs more than it saves."""

    transforms: int
    """The same where the operations are Fourier or Hadamard transforms."""

    batched: int
    """Cost of one multiply-add in a batch of small products, in multiply-adds of one large product."""

    shortest: int
    """Shortest block of a circulant matrix that a transform multiplies faster than a dense product."""

    spectra: bool
    """Whether complex Fourier transforms of any length, many at once, are fast: circulant matrices then multiply spectra."""

    cosines: int
    """Without spectra: longest circulant block that is multiplied as products with cosines and sines; 0 for none."""

    fourier: int
    """Without spectra: shortest single circulant block, of a power of two, for which the engine's own transform pays."""

    kernel_blocks: int
    """Fewest blocks down and across for which the compiled circular product is faster than spectra."""

    kernel_rows: int
    """Most inputs at once for which the compiled circular product is faster than spectra; 0 where the engine cannot call it."""

    stores: bool
    """Whether layers may hold weights multiplied out from what the file stores.

    In a graph that is part of a file, these would be bytes stored twice: there, they are computed as the graph is loaded.
    """


EAGER = Costs(
    move=32,  # taken over from ONNX Runtime, not measured in PyTorch
    separable=3,
    chain=1 << 16, transforms=1 << 18, batched=3, shortest=16,
    spectra=True, cosines=0, fourier=0,
    kernel_blocks=8, kernel_rows=4,  # PyTorch plans its transforms anew at each call, which weighs most on few inputs
    stores=True,
)  # fmt: skip

ONNXRUNTIME = Costs(
    move=32, separable=3, chain=1 << 16, transforms=1 << 18, batched=3, shortest=16,
    spectra=False, cosines=256, fourier=4096,  # its Fourier transform is slow; short ones are faster as matrix products
    kernel_blocks=0, kernel_rows=0,
    stores=False,
)  # fmt: skip

"""The structures that a layer is measured against, each with the settings that spend a given part of the layer's numbers.

To add one, write a function from the shape of a weight ``[outputs, inputs, *kernel]`` and the fraction of its numbers to a
method, or None where the fraction cannot be met, and name it in ``STRUCTURES``. A method's own refusals need not be foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters.crelu_filters import CReLUFilters
from kogata.methods.filters.crop_filters import CropFilters
from kogata.methods.filters.cyclic_filters import CyclicFilters
from kogata.methods.filters.depthwise_separable import DepthwiseSeparable
from kogata.methods.filters.fire import Fire
from kogata.methods.filters.group_filters import GroupFilters
from kogata.methods.filters.mixed_kernels import MixedKernels
from kogata.methods.filters.multi_bias_filters import MultiBiasFilters
from kogata.methods.kernels.svd import parted
from kogata.methods.lowrank.cp import CP
from kogata.methods.lowrank.separable import Separable
from kogata.methods.lowrank.svd import SVD
from kogata.methods.lowrank.tensor_train import TensorTrain, links
from kogata.methods.lowrank.tucker2 import Tucker2
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.methods.pruning.magnitude_pruning import MagnitudePruning
from kogata.methods.sharing.kmeans import KMeans
from kogata.methods.structured.adaptive_fastfood import AdaptiveFastfood
from kogata.methods.structured.block_circulant import BlockCirculant
from kogata.methods.structured.block_diagonal import BlockDiagonal
from kogata.methods.structured.butterfly import Butterfly
from kogata.methods.structured.kronecker import Kronecker
from kogata.methods.structured.low_displacement import LowDisplacement
from kogata.methods.structured.monarch import Monarch
from kogata.methods.structured.projection import divisor

Shape = tuple[int, ...]
Candidate = Callable[[Shape, float], WeightMethod | None]

BITS = 32  # of a number that a structure stores
STEP = 1 / 64  # between the fractional ranks that are tried
CORES = 3
LARGEST = 2048  # columns up to which fastfood is fitted in seconds
SHARE = 0.5  # of the filters of a fire block that keep their kernel


def _svd(shape: Shape, fraction: float) -> SVD | None:
    rank = _pair_rank(shape, fraction)
    return SVD(rank=rank) if rank else None


def _whitened(shape: Shape, fraction: float) -> WhitenedSVD | None:
    rank = _pair_rank(shape, fraction)
    return WhitenedSVD(rank=rank) if rank else None


def _separable(shape: Shape, fraction: float) -> Separable | None:
    if len(shape) != 4:
        return None
    outputs, inputs, height, width = shape
    rank = int(fraction * math.prod(shape) / (inputs * height + width * outputs))
    return Separable(rank=rank) if rank else None


def _tucker(shape: Shape, fraction: float) -> Tucker2 | None:
    """The largest fraction of the channels, the same on both sides."""
    if len(shape) < 3:
        return None

    def held(rank: float) -> int:
        ranks = [max(1, round(rank * channels)) for channels in shape[:2]]
        return ranks[0] * shape[0] + ranks[1] * shape[1] + math.prod(ranks) * math.prod(shape[2:])

    rank = _largest_rank(held, fraction * math.prod(shape))
    return Tucker2(rank=rank) if rank else None


def _cp(shape: Shape, fraction: float) -> CP | None:
    rank = int(fraction * math.prod(shape) / sum(shape))
    return CP(rank=rank) if rank and len(shape) > 2 else None


def _tensor_train(shape: Shape, fraction: float) -> TensorTrain | None:
    if len(shape) != 2:
        return None
    sizes = [row * column for row, column in zip(*(parted(size, CORES) for size in shape), strict=True)]

    def held(rank: float) -> int:
        ranks = [1, *links(sizes, rank), 1]
        return sum(ranks[n] * size * ranks[n + 1] for n, size in enumerate(sizes))

    rank = _largest_rank(held, fraction * math.prod(shape))
    return TensorTrain(rank=rank, cores=CORES) if rank else None


def _depthwise(shape: Shape, fraction: float) -> DepthwiseSeparable | None:
    multiplier = int(fraction * math.prod(shape) / (shape[1] * (shape[0] + math.prod(shape[2:]))))
    return DepthwiseSeparable(multiplier=multiplier) if multiplier and len(shape) > 2 else None


def _fire(shape: Shape, fraction: float) -> Fire | None:
    large = round(SHARE * shape[0])
    squeeze = int(fraction * math.prod(shape) / (shape[1] + shape[0] - large + large * math.prod(shape[2:])))
    return Fire(squeeze=min(squeeze, shape[1]), share=SHARE) if squeeze and len(shape) > 2 else None


def _mixed(shape: Shape, fraction: float) -> MixedKernels | None:
    places = math.prod(shape[2:])
    large = int((fraction * places - 1) * shape[0] / (places - 1)) if places > 1 else 0
    return MixedKernels(share=large / shape[0]) if large > 0 else None


def _block_diagonal(shape: Shape, fraction: float) -> BlockDiagonal | None:
    blocks = _block(shape, fraction)
    return BlockDiagonal(blocks=blocks) if blocks else None


def _butterfly(shape: Shape, fraction: float) -> Butterfly | None:
    """The fewest, and so the fullest, factors."""
    for count in range(2, 1 + max(2, int(math.log2(min(shape[0], math.prod(shape[1:])))))):
        rows, columns = (parted(size, count) for size in (shape[0], math.prod(shape[1:])))
        held = sum(math.prod(rows[: s + 1]) * math.prod(columns[s:]) for s in range(count))
        if held <= fraction * math.prod(shape):
            return Butterfly(factors=count)
    return None


def _circulant(shape: Shape, fraction: float) -> BlockCirculant | None:
    block = _block(shape, fraction)
    return BlockCirculant(block=block) if block else None


def _displacement(shape: Shape, fraction: float) -> LowDisplacement | None:
    rank = int(fraction * math.prod(shape) / (2 * max(shape[0], math.prod(shape[1:]))))
    return LowDisplacement(rank=rank) if rank else None


def _fastfood(shape: Shape, fraction: float) -> AdaptiveFastfood | None:
    """It has one size, whatever the fraction."""
    return AdaptiveFastfood() if math.prod(shape[1:]) <= LARGEST else None


def _kronecker(shape: Shape, fraction: float) -> Kronecker | None:
    sides = [(size, divisor(size, math.isqrt(size))) for size in (shape[0], math.prod(shape[1:]))]
    outer = math.prod(high for _, high in sides)
    rank = min(int(fraction * math.prod(shape) / (outer + math.prod(shape) // outer)), outer)
    return Kronecker(rank=rank) if rank else None


def _monarch(shape: Shape, fraction: float) -> Monarch | None:
    sides = [(size, divisor(size, math.isqrt(size))) for size in (shape[0], math.prod(shape[1:]))]
    pairs, inside = math.prod(blocks for _, blocks in sides), sum(size // blocks for size, blocks in sides)
    rank = int(fraction * math.prod(shape) / (pairs * inside))
    return Monarch(rank=rank) if rank else None


def _crelu(shape: Shape, fraction: float) -> CReLUFilters | None:
    return CReLUFilters() if fraction >= 1 / 2 else None


def _multi_bias(shape: Shape, fraction: float) -> MultiBiasFilters | None:
    biases = next((n for n in range(max(2, math.ceil(1 / fraction)), shape[0] + 1) if shape[0] % n == 0), None)
    return MultiBiasFilters(biases=biases) if biases else None


def _cyclic(shape: Shape, fraction: float) -> CyclicFilters | None:
    return CyclicFilters() if fraction >= 1 / 4 else None


def _group(shape: Shape, fraction: float) -> GroupFilters | None:
    return GroupFilters(mirrored=fraction < 1 / 4) if fraction >= 1 / 8 else None


def _crops(shape: Shape, fraction: float) -> CropFilters | None:
    kernel = shape[-1] if len(shape) == 4 else 1
    margins = (m for m in range(1, kernel) if (kernel + m) ** 2 <= fraction * ((m + 1) * kernel) ** 2)
    margin = next(margins, None)
    return CropFilters(margin=margin) if margin else None


def _magnitude(shape: Shape, fraction: float) -> MagnitudePruning | None:
    """As many numbers as leave room for the mask that says where they are."""
    count, low, high = math.prod(shape), 0, math.prod(shape)
    while low < high:
        middle = (low + high + 1) // 2
        bits = BITS * middle + count * _binary_entropy(middle / count)
        low, high = (middle, high) if bits <= BITS * fraction * count else (low, middle - 1)
    return MagnitudePruning(sparsity=1 - low / count) if low else None


def _kmeans(shape: Shape, fraction: float) -> KMeans | None:
    """As many clusters as leave room for their table."""
    count = math.prod(shape)
    most = [k for k in range(1, 9) if count * k + BITS * 2**k <= BITS * fraction * count]
    return KMeans(clusters=2 ** most[-1]) if most else None


def _pair_rank(shape: Shape, fraction: float) -> int:
    return int(fraction * math.prod(shape) / (shape[0] + math.prod(shape[1:])))


def _block(shape: Shape, fraction: float) -> int | None:
    """The fewest blocks down a diagonal, or the smallest circulant blocks; the last ones may run past the end."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    budget = fraction * outputs * inputs
    return next((n for n in range(2, min(outputs, inputs)) if n * -(-outputs // n) * -(-inputs // n) <= budget), None)


def _largest_rank(held: Callable[[float], int], budget: float) -> float | None:
    ranks = [n * STEP for n in range(1, round(1 / STEP))]
    return max((rank for rank in ranks if held(rank) <= budget), default=None)


def _binary_entropy(share: float) -> float:
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


STRUCTURES: tuple[tuple[str, Candidate], ...] = (
    ("svd", _svd),
    ("whitened-svd", _whitened),
    ("separable", _separable),
    ("tucker-2", _tucker),
    ("cp", _cp),
    ("tensor-train", _tensor_train),
    ("depthwise-separable", _depthwise),
    ("fire", _fire),
    ("mixed-kernels", _mixed),
    ("block-diagonal", _block_diagonal),
    ("butterfly", _butterfly),
    ("circulant", _circulant),
    ("low-displacement", _displacement),
    ("fastfood", _fastfood),
    ("kronecker", _kronecker),
    ("monarch", _monarch),
    ("crelu-filters", _crelu),
    ("multi-bias-filters", _multi_bias),
    ("cyclic-filters", _cyclic),
    ("group-filters", _group),
    ("crop-filters", _crops),
)

# No structures, but what these are compared with. They compose with every structure, so they are not chosen against one.
YARDSTICKS: tuple[tuple[str, Candidate], ...] = (("magnitude", _magnitude), ("k-means", _kmeans))

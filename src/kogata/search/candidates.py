"""The structures that are tried on each layer. Each has a method ``sized`` that finds the settings for a given size.

To add one, implement ``sized`` in the method and list it in ``STRUCTURES``.
"""

from __future__ import annotations

from kogata.methods.base.weight import WeightMethod
from kogata.methods.filters.crelu_filters import CReLUFilters
from kogata.methods.filters.crop_filters import CropFilters
from kogata.methods.filters.cyclic_filters import CyclicFilters
from kogata.methods.filters.depthwise_separable import DepthwiseSeparable
from kogata.methods.filters.fire import Fire
from kogata.methods.filters.group_filters import GroupFilters
from kogata.methods.filters.mixed_kernels import MixedKernels
from kogata.methods.filters.multi_bias_filters import MultiBiasFilters
from kogata.methods.lowrank.cp import CP
from kogata.methods.lowrank.separable import Separable
from kogata.methods.lowrank.svd import SVD
from kogata.methods.lowrank.tensor_train import TensorTrain
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

STRUCTURES: tuple[type[WeightMethod], ...] = (
    SVD,
    WhitenedSVD,
    Separable,
    Tucker2,
    CP,
    TensorTrain,
    DepthwiseSeparable,
    Fire,
    MixedKernels,
    BlockDiagonal,
    Butterfly,
    BlockCirculant,
    LowDisplacement,
    AdaptiveFastfood,
    Kronecker,
    Monarch,
    CReLUFilters,
    MultiBiasFilters,
    CyclicFilters,
    GroupFilters,
    CropFilters,
)

# Methods for comparison. They can be combined with every structure, so they are not alternatives to one.
YARDSTICKS: tuple[type[WeightMethod], ...] = (MagnitudePruning, KMeans)

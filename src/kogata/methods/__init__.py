"""All methods, and the classes that a method of your own extends (docs/adding_a_method.md).

To add a method to Kogata itself, write its file and its test, and list its class in ``METHODS``.
"""

from kogata.calibration.stats import Stat, Stats
from kogata.job import Kind, Site
from kogata.methods.base.method import About, Method
from kogata.methods.base.planned import PlannedLeaf, PlannedMethod
from kogata.methods.base.weight import WeightMethod
from kogata.methods.distillation.global_pooling import GlobalPooling
from kogata.methods.distillation.shallower import Shallower
from kogata.methods.distillation.stochastic_depth import StochasticDepth
from kogata.methods.filters.crelu_filters import CReLUFilters
from kogata.methods.filters.crop_filters import CropFilters
from kogata.methods.filters.cyclic_filters import CyclicFilters
from kogata.methods.filters.depthwise_separable import DepthwiseSeparable
from kogata.methods.filters.fire import Fire
from kogata.methods.filters.group_filters import GroupFilters
from kogata.methods.filters.mixed_kernels import MixedKernels
from kogata.methods.filters.multi_bias_filters import MultiBiasFilters
from kogata.methods.lowrank.cp import CP
from kogata.methods.lowrank.rank_allocation import RankAllocation
from kogata.methods.lowrank.separable import Separable
from kogata.methods.lowrank.svd import SVD
from kogata.methods.lowrank.tensor_train import TensorTrain
from kogata.methods.lowrank.tucker2 import Tucker2
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.methods.pruning.admm_pruning import ADMMPruning
from kogata.methods.pruning.biased_weight_decay import BiasedWeightDecay
from kogata.methods.pruning.channel_pruning import ChannelPruning
from kogata.methods.pruning.group_lasso import GroupLasso
from kogata.methods.pruning.magnitude_pruning import MagnitudePruning
from kogata.methods.pruning.movement_pruning import MovementPruning
from kogata.methods.pruning.neuron_merging import NeuronMerging
from kogata.methods.pruning.obd import OBD
from kogata.methods.pruning.obs import OBS
from kogata.methods.pruning.sparsegpt import SparseGPT
from kogata.methods.pruning.wanda import Wanda
from kogata.methods.quantization.activations import DynamicActivations, StaticActivations
from kogata.methods.quantization.adaround import AdaRound
from kogata.methods.quantization.binary_connect import BinaryConnect
from kogata.methods.quantization.binary_net import BinaryNet
from kogata.methods.quantization.brecq import BRECQ
from kogata.methods.quantization.fixed_point import FixedPoint
from kogata.methods.quantization.gptq import GPTQ
from kogata.methods.quantization.half import Half
from kogata.methods.quantization.lab import LAB
from kogata.methods.quantization.lsq import LSQ
from kogata.methods.quantization.rate_obs import RateOBS
from kogata.methods.quantization.round_to_nearest import RoundToNearest
from kogata.methods.quantization.ternary import Ternary
from kogata.methods.quantization.xnor_net import XNORNet
from kogata.methods.recover import Recover
from kogata.methods.sharing.corrected_pq import CorrectedPQ
from kogata.methods.sharing.ecsq import ECSQ
from kogata.methods.sharing.hashed import Hashed
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.methods.sharing.kmeans import KMeans
from kogata.methods.sharing.product_quantization import ProductQuantization
from kogata.methods.sharing.residual_quantization import ResidualQuantization
from kogata.methods.sharing.soft_weight_sharing import SoftWeightSharing
from kogata.methods.structured.adaptive_fastfood import AdaptiveFastfood
from kogata.methods.structured.block_circulant import BlockCirculant
from kogata.methods.structured.block_diagonal import BlockDiagonal
from kogata.methods.structured.butterfly import Butterfly
from kogata.methods.structured.kronecker import Kronecker
from kogata.methods.structured.low_displacement import LowDisplacement
from kogata.methods.structured.monarch import Monarch
from kogata.settings import Range

METHODS: tuple[type[Method], ...] = (
    MagnitudePruning,
    Wanda,
    SparseGPT,
    OBD,
    OBS,
    BiasedWeightDecay,
    GroupLasso,
    MovementPruning,
    ADMMPruning,
    ChannelPruning,
    NeuronMerging,
    KMeans,
    HessianKMeans,
    ECSQ,
    ProductQuantization,
    ResidualQuantization,
    CorrectedPQ,
    Hashed,
    SoftWeightSharing,
    RoundToNearest,
    GPTQ,
    RateOBS,
    AdaRound,
    BRECQ,
    LSQ,
    FixedPoint,
    BinaryConnect,
    LAB,
    XNORNet,
    BinaryNet,
    Ternary,
    Half,
    StaticActivations,
    DynamicActivations,
    SVD,
    WhitenedSVD,
    RankAllocation,
    Separable,
    Tucker2,
    CP,
    TensorTrain,
    BlockCirculant,
    LowDisplacement,
    AdaptiveFastfood,
    Monarch,
    Butterfly,
    Kronecker,
    BlockDiagonal,
    CReLUFilters,
    MultiBiasFilters,
    CyclicFilters,
    CropFilters,
    GroupFilters,
    DepthwiseSeparable,
    Fire,
    MixedKernels,
    GlobalPooling,
    Shallower,
    StochasticDepth,
    Recover,
)

__all__ = [
    "BRECQ",
    "CP",
    "ECSQ",
    "GPTQ",
    "LAB",
    "LSQ",
    "METHODS",
    "OBD",
    "OBS",
    "SVD",
    "ADMMPruning",
    "About",
    "AdaRound",
    "AdaptiveFastfood",
    "BiasedWeightDecay",
    "BinaryConnect",
    "BinaryNet",
    "BlockCirculant",
    "BlockDiagonal",
    "Butterfly",
    "CReLUFilters",
    "ChannelPruning",
    "CorrectedPQ",
    "CropFilters",
    "CyclicFilters",
    "DepthwiseSeparable",
    "DynamicActivations",
    "Fire",
    "FixedPoint",
    "GlobalPooling",
    "GroupFilters",
    "GroupLasso",
    "Half",
    "Hashed",
    "HessianKMeans",
    "KMeans",
    "Kind",
    "Kronecker",
    "LowDisplacement",
    "MagnitudePruning",
    "Method",
    "MixedKernels",
    "Monarch",
    "MovementPruning",
    "MultiBiasFilters",
    "NeuronMerging",
    "PlannedLeaf",
    "PlannedMethod",
    "ProductQuantization",
    "Range",
    "RankAllocation",
    "RateOBS",
    "Recover",
    "ResidualQuantization",
    "RoundToNearest",
    "Separable",
    "Shallower",
    "Site",
    "SoftWeightSharing",
    "SparseGPT",
    "Stat",
    "StaticActivations",
    "Stats",
    "StochasticDepth",
    "TensorTrain",
    "Ternary",
    "Tucker2",
    "Wanda",
    "WeightMethod",
    "WhitenedSVD",
    "XNORNet",
]

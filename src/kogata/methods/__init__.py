"""Every method. Adding one touches its own file, this tuple, and its oracle test."""

from kogata.method import Method
from kogata.methods.distillation.recover import Recover
from kogata.methods.lowrank.cp import CP
from kogata.methods.lowrank.rank_allocation import RankAllocation
from kogata.methods.lowrank.separable import Separable
from kogata.methods.lowrank.svd import SVD
from kogata.methods.lowrank.tensor_train import TensorTrain
from kogata.methods.lowrank.tucker import Tucker2
from kogata.methods.lowrank.whitened_svd import WhitenedSVD
from kogata.methods.pruning.admm import ADMMPruning
from kogata.methods.pruning.channels import ChannelPruning
from kogata.methods.pruning.decay import BiasedWeightDecay
from kogata.methods.pruning.group_lasso import GroupLasso
from kogata.methods.pruning.magnitude import MagnitudePruning
from kogata.methods.pruning.merging import NeuronMerging
from kogata.methods.pruning.movement import MovementPruning
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
from kogata.methods.quantization.rounding import RoundToNearest
from kogata.methods.quantization.ternary import Ternary
from kogata.methods.quantization.xnor import XNORNet
from kogata.methods.sharing.corrected_pq import CorrectedPQ
from kogata.methods.sharing.ecsq import ECSQ
from kogata.methods.sharing.hashed import Hashed
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.methods.sharing.kmeans import KMeans
from kogata.methods.sharing.product_quantization import ProductQuantization
from kogata.methods.sharing.residual_quantization import ResidualQuantization
from kogata.methods.sharing.soft_sharing import SoftWeightSharing

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
    "AdaRound",
    "BiasedWeightDecay",
    "BinaryConnect",
    "BinaryNet",
    "ChannelPruning",
    "CorrectedPQ",
    "DynamicActivations",
    "FixedPoint",
    "GroupLasso",
    "Half",
    "Hashed",
    "HessianKMeans",
    "KMeans",
    "MagnitudePruning",
    "MovementPruning",
    "NeuronMerging",
    "ProductQuantization",
    "RankAllocation",
    "Recover",
    "ResidualQuantization",
    "RoundToNearest",
    "Separable",
    "SoftWeightSharing",
    "SparseGPT",
    "StaticActivations",
    "TensorTrain",
    "Ternary",
    "Tucker2",
    "Wanda",
    "WhitenedSVD",
    "XNORNet",
]

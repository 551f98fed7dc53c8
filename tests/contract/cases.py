"""One instance of every method, for the tests that every method must pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kogata.methods import (
    BRECQ,
    CP,
    ECSQ,
    GPTQ,
    LAB,
    LSQ,
    OBD,
    OBS,
    SVD,
    AdaptiveFastfood,
    AdaRound,
    ADMMPruning,
    BiasedWeightDecay,
    BinaryConnect,
    BinaryNet,
    BlockCirculant,
    BlockDiagonal,
    Butterfly,
    ChannelPruning,
    CorrectedPQ,
    CReLUFilters,
    CropFilters,
    CyclicFilters,
    DepthwiseSeparable,
    DynamicActivations,
    Fire,
    FixedPoint,
    GlobalPooling,
    GroupFilters,
    GroupLasso,
    Half,
    Hashed,
    HessianKMeans,
    KMeans,
    Kronecker,
    LowDisplacement,
    MagnitudePruning,
    MixedKernels,
    Monarch,
    MovementPruning,
    MultiBiasFilters,
    NeuronMerging,
    ProductQuantization,
    RankAllocation,
    RateOBS,
    Recover,
    ResidualQuantization,
    RoundToNearest,
    Separable,
    Shallower,
    SoftWeightSharing,
    SparseGPT,
    StaticActivations,
    StochasticDepth,
    TensorTrain,
    Ternary,
    Tucker2,
    Wanda,
    WhitenedSVD,
    XNORNet,
)
from kogata.methods.base.method import Method

BRIEF = Recover(epochs=1, learning_rate=1e-2)

CASES: Mapping[type[Method], Method] = {
    MagnitudePruning: MagnitudePruning(sparsity=0.6),
    Wanda: Wanda(sparsity=0.5),
    SparseGPT: SparseGPT(sparsity=0.5),
    OBD: OBD(sparsity=0.6),
    OBS: OBS(sparsity=0.5),
    BiasedWeightDecay: BiasedWeightDecay(strength=1e-3, recover=BRIEF),
    GroupLasso: GroupLasso(strength=0.05, recover=BRIEF),
    MovementPruning: MovementPruning(sparsity=0.6, recover=BRIEF),
    ADMMPruning: ADMMPruning(sparsity=0.6, recover=BRIEF),
    ChannelPruning: ChannelPruning(sparsity=0.5),
    NeuronMerging: NeuronMerging(sparsity=0.5),
    KMeans: KMeans(clusters=6),
    HessianKMeans: HessianKMeans(clusters=6),
    ECSQ: ECSQ(bits=2.0, clusters=8),
    ProductQuantization: ProductQuantization(clusters=4, length=2),
    ResidualQuantization: ResidualQuantization(clusters=2, stages=2, length=4),
    CorrectedPQ: CorrectedPQ(clusters=4, length=2),
    Hashed: Hashed(fraction=0.25),
    SoftWeightSharing: SoftWeightSharing(recover=BRIEF),
    RoundToNearest: RoundToNearest(bits=4, group=16),
    GPTQ: GPTQ(bits=4, group=16),
    RateOBS: RateOBS(slope=1e-7),
    AdaRound: AdaRound(bits=4, group=16, iterations=5),
    BRECQ: BRECQ(bits=4, blocks=("conv", "deep", "hidden", "out", "encoder"), iterations=2),
    LSQ: LSQ(bits=4, recover=BRIEF),
    FixedPoint: FixedPoint(integer=4, fraction=8, recover=BRIEF),
    BinaryConnect: BinaryConnect(recover=Recover(epochs=1, learning_rate=1e-3)),
    LAB: LAB(recover=BRIEF),
    XNORNet: XNORNet(recover=BRIEF),
    BinaryNet: BinaryNet(recover=BRIEF),
    Ternary: Ternary(recover=BRIEF),
    Half: Half(),
    StaticActivations: StaticActivations(bits=8),
    DynamicActivations: DynamicActivations(bits=8),
    SVD: SVD(rank=0.25),
    WhitenedSVD: WhitenedSVD(rank=0.25),
    RankAllocation: RankAllocation(fraction=0.5),
    Separable: Separable(rank=0.25),
    Tucker2: Tucker2(rank=0.5),
    CP: CP(rank=0.125),
    TensorTrain: TensorTrain(rank=0.25, cores=2),
    BlockCirculant: BlockCirculant(block=4),
    LowDisplacement: LowDisplacement(rank=1),
    AdaptiveFastfood: AdaptiveFastfood(),
    Monarch: Monarch(rank=1, residual=1),
    Butterfly: Butterfly(factors=3),
    Kronecker: Kronecker(rank=0.25),
    BlockDiagonal: BlockDiagonal(blocks=2, residual=1),
    CReLUFilters: CReLUFilters(),
    MultiBiasFilters: MultiBiasFilters(),
    CyclicFilters: CyclicFilters(),
    CropFilters: CropFilters(),
    GroupFilters: GroupFilters(),
    DepthwiseSeparable: DepthwiseSeparable(multiplier=1),
    Fire: Fire(squeeze=0.5),
    MixedKernels: MixedKernels(share=0.25),
    GlobalPooling: GlobalPooling(places=4),
    Shallower: Shallower(keep=1),
    StochasticDepth: StochasticDepth(branches="out", recover=BRIEF, survival=1.0),
    Recover: Recover(epochs=1, learning_rate=1e-2),
}

# What trains the model, or parts of it: half precision cannot be trained.
TRAINED = frozenset(kind for kind in CASES if kind.ABOUT.training) | {BRECQ}

STRUCTURED = (BlockCirculant, LowDisplacement, AdaptiveFastfood, Monarch, Butterfly, Kronecker, BlockDiagonal)
TRANSFERRED = (CReLUFilters, MultiBiasFilters, CyclicFilters, CropFilters, GroupFilters)
COMPACT = (DepthwiseSeparable, Fire, MixedKernels)

# The models a method can do nothing for, and what its refusal must say.
REFUSED: Mapping[tuple[type[Method], str], str] = {
    (Wanda, "tied"): "this is embedding",
    **{(kind, "tied"): "this is embedding" for kind in (CorrectedPQ, OBS, AdaRound, WhitenedSVD, RankAllocation)},
    **{
        (kind, name): "this is"
        for kind in (Separable, Tucker2, CP, *TRANSFERRED, *COMPACT)
        for name in ("attention", "embedding", "tied")
    },
    **{
        (Shallower, name): "nothing to do"
        for name in ("conv", "subclass", "attention", "embedding", "tied", "float16", "bfloat16")
    },
    (StochasticDepth, "tied"): "not tied",
    (GlobalPooling, "tied"): "this is embedding",
    (BRECQ, "tied"): "in none of the blocks",
    (NeuronMerging, "embedding"): "its outputs are the model's",
    (NeuronMerging, "tied"): "nothing to do",
    (NeuronMerging, "stack"): "not ReLU neurons between two linear layers",
    **{
        (kind, name): reason
        for kind in (XNORNet, BinaryNet)
        for name, reason in (
            ("attention", "inputs cannot become signs"),
            ("embedding", r"reads the result of mean\(\)"),
            ("tied", "this is embedding"),
        )
    },
    **{(FixedPoint, name): "cannot hold 12 bits" for name in ("float16", "bfloat16")},
    **{(kind, "tied"): "not the weight of a linear" for kind in (StaticActivations, DynamicActivations)},
    (Half, "float16"): "half precision holds its numbers exactly",
    (Half, "bfloat16"): "would not get smaller",
}

# What may come after what. A method that needs whole weights cannot follow one that leaves only some of their numbers, and
# nothing that works on numbers can follow one that left codes, signs or indices of them.
ANYTIME = frozenset({Half, Recover, StaticActivations, DynamicActivations})
LOW_RANK = frozenset({SVD, WhitenedSVD, RankAllocation, Separable, Tucker2, CP, TensorTrain})
WHOLE = LOW_RANK | frozenset({
    *STRUCTURED, *TRANSFERRED, *COMPACT,
    GlobalPooling,
    Wanda, SparseGPT, OBS, GroupLasso, ChannelPruning, NeuronMerging, ProductQuantization, ResidualQuantization,
    CorrectedPQ, Hashed, AdaRound, BRECQ, XNORNet, BinaryNet,
})  # fmt: skip
LEAVES_NUMBERS = frozenset({MagnitudePruning, Wanda, SparseGPT, OBD, OBS, MovementPruning, ADMMPruning, Hashed})
LEAVES_CODES = frozenset({
    KMeans, HessianKMeans, ECSQ, ProductQuantization, ResidualQuantization, CorrectedPQ, SoftWeightSharing, RoundToNearest,
    GPTQ, RateOBS, AdaRound, BRECQ, LSQ, FixedPoint, BinaryConnect, LAB, Ternary,
})  # fmt: skip

# Second steps that a first step leaves no leaf for: the order is wrong whatever the weights are.
ILLEGAL: Mapping[type[Method], frozenset[type[Method]]] = {
    **dict.fromkeys(LEAVES_NUMBERS, WHOLE),
    **dict.fromkeys(LEAVES_CODES, frozenset(CASES) - ANYTIME - {StochasticDepth, Shallower}),
    # the first layer, which they leave, is a convolution and reads no signs
    **dict.fromkeys((XNORNet, BinaryNet), frozenset({XNORNet, BinaryNet, TensorTrain, GlobalPooling})),
}

# Orders that are legal, but where the second of two methods with these settings has nothing left to gain.
EQUALLY_SPARSE = (MagnitudePruning, OBD, MovementPruning, ADMMPruning)
ALL_LAYERS = (SVD, WhitenedSVD)  # of the low rank family: no plain weight is left, and factors have no extent in space
HALF_SCALES = frozenset({RoundToNearest, GPTQ, RateOBS, AdaRound, BRECQ, LSQ, FixedPoint, BinaryConnect, LAB, Ternary})
# What structures leave of these small layers is too small for others, or no longer what they need: a matrix, a kernel, inputs
# that can be seen.
FACTORED = (*STRUCTURED, *TRANSFERRED, *COMPACT, SVD, WhitenedSVD, Separable, Tucker2, CP)
NO_KERNEL = (AdaptiveFastfood, LowDisplacement, SVD, WhitenedSVD, CP, DepthwiseSeparable)
SMALL = (AdaptiveFastfood, LowDisplacement, BlockDiagonal, Butterfly)
LEAVES_OUT = frozenset({
    BiasedWeightDecay, GroupLasso, ChannelPruning, NeuronMerging, StaticActivations, DynamicActivations, RankAllocation,
    Separable, Tucker2, CP, Half, StochasticDepth, Shallower, Recover, *TRANSFERRED, *COMPACT,
})  # fmt: skip
AFTER_STRUCTURE: Mapping[type[Method], Iterable[type[Method]]] = {
    **dict.fromkeys(TRANSFERRED, FACTORED),
    **dict.fromkeys((Fire, MixedKernels), (*NO_KERNEL, BlockCirculant, BlockDiagonal, CropFilters)),
    **dict.fromkeys(
        (GPTQ, AdaRound, ChannelPruning, CorrectedPQ, OBS, RankAllocation, SparseGPT, Wanda, WhitenedSVD), STRUCTURED
    ),
    **dict.fromkeys((Kronecker, Monarch, ProductQuantization, ResidualQuantization, *SMALL[:3]), SMALL),
    **dict.fromkeys((BlockCirculant, Butterfly, SVD), SMALL[:2]),
    **dict.fromkeys((CP, Tucker2), (AdaptiveFastfood, LowDisplacement, DepthwiseSeparable)),
    NeuronMerging: (*STRUCTURED, GlobalPooling),
    Separable: (*(kind for kind in STRUCTURED if kind is not Butterfly), DepthwiseSeparable),
    DepthwiseSeparable: NO_KERNEL,
    TensorTrain: (BlockCirculant, Butterfly, Kronecker),
    GlobalPooling: (BlockCirculant, Butterfly, Kronecker, TensorTrain),
    StochasticDepth: frozenset(CASES) - LEAVES_OUT,  # a form as the last layer of its branch
}
FUTILE: frozenset[tuple[type[Method], type[Method]]] = frozenset({
    *((first, second) for second, firsts in AFTER_STRUCTURE.items() for first in firsts),
    (Shallower, NeuronMerging), (Shallower, Shallower), (GroupLasso, Shallower),  # whose masks make like layers unlike
    (Half, CReLUFilters), (Half, MultiBiasFilters),  # means of two halves are no halves
    *((first, second) for first in EQUALLY_SPARSE for second in EQUALLY_SPARSE),
    *((first, Half) for first in HALF_SCALES | {Half}),
    *((first, second) for first in ALL_LAYERS for second in (RankAllocation, Separable, Tucker2, CP)),
    *((first, second) for first in ALL_LAYERS for second in (ChannelPruning, NeuronMerging)),
    (RankAllocation, ChannelPruning), (RankAllocation, NeuronMerging),
    (Separable, Separable), (Tucker2, Separable), (CP, Separable), (CP, Tucker2), (CP, CP), (TensorTrain, TensorTrain),
    (TensorTrain, NeuronMerging), (Hashed, GPTQ),  # whose buckets have no inputs of their own
    *((first, second) for first in (XNORNet, BinaryNet) for second in (ChannelPruning, NeuronMerging)),
    (Half, SparseGPT), (Half, OBS),  # what makes up for the errors is no longer exact in half precision
    *((first, NeuronMerging) for first in (StaticActivations, DynamicActivations)), (DynamicActivations, ChannelPruning),
})  # fmt: skip

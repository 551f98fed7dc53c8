"""Every method. Adding one touches its own file, this tuple, and its oracle test."""

from kogata.method import Method
from kogata.methods.distillation import Recover
from kogata.methods.lowrank import SVD
from kogata.methods.pruning import MagnitudePruning, Wanda
from kogata.methods.quantization import Half, RoundToNearest
from kogata.methods.sharing import KMeans

METHODS: tuple[type[Method], ...] = (MagnitudePruning, Wanda, KMeans, RoundToNearest, Half, SVD, Recover)

__all__ = ["METHODS", "SVD", "Half", "KMeans", "MagnitudePruning", "Recover", "RoundToNearest", "Wanda"]

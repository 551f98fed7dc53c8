"""Sharing: many weights, few values."""

from kogata.methods.sharing.corrected_pq import CorrectedPQ
from kogata.methods.sharing.ecsq import ECSQ
from kogata.methods.sharing.hashed import Hashed
from kogata.methods.sharing.hessian_kmeans import HessianKMeans
from kogata.methods.sharing.kmeans import KMeans
from kogata.methods.sharing.product_quantization import ProductQuantization
from kogata.methods.sharing.residual_quantization import ResidualQuantization

__all__ = ["ECSQ", "CorrectedPQ", "Hashed", "HessianKMeans", "KMeans", "ProductQuantization", "ResidualQuantization"]

"""Low rank: a weight is a product of thinner ones."""

from kogata.methods.lowrank.svd import SVD

__all__ = ["SVD"]

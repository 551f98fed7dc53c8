"""Sharing: many weights, few values."""

from kogata.methods.sharing.kmeans import KMeans

__all__ = ["KMeans"]

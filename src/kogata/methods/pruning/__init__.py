"""Pruning: which weights to keep."""

from kogata.methods.pruning.magnitude import MagnitudePruning
from kogata.methods.pruning.wanda import Wanda

__all__ = ["MagnitudePruning", "Wanda"]

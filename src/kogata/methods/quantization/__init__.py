"""Quantization: fewer bits for each number."""

from kogata.methods.quantization.half import Half
from kogata.methods.quantization.rounding import RoundToNearest

__all__ = ["Half", "RoundToNearest"]

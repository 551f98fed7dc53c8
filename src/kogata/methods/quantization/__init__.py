"""Quantization: fewer bits for each number."""

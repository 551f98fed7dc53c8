"""Quantization: weights and activations with few bits."""

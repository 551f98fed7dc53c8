"""Layers to train from scratch: shared filters, experts, low rank with normalization, and Net2Net growth."""

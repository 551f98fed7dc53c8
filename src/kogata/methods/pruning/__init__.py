"""Pruning: which weights to keep."""

"""Pruning: remove single weights, groups of weights, or channels."""

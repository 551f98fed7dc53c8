"""Structured matrices: a weight becomes a matrix with few parameters and a fast multiplication."""

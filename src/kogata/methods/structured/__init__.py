"""Structured matrices: a weight becomes one of a kind that few numbers say and that multiplies fast."""

"""Linear algebra and compiled loops (numba) that several methods share."""

"""Compiled inner loops (numba) that tensors cannot express well."""

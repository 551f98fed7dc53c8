"""Benchmarks that print every figure of the documentation and keep them in ``results/``.

A benchmark is a module here whose docstring opens with what it measures, with ``MINUTES`` (about how long it takes on
two cores) and ``main()``. List them with ``python -m benchmarks --list``; run one with ``python -m benchmarks.NAME``.
"""

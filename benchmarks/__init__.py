"""Benchmarks that measure every figure of the documentation and store it in ``results/``.

A benchmark is a module of this folder with a docstring whose first line says what it measures, with ``MINUTES`` (about how long
it takes on two cores) and ``main()``. List them with ``python -m benchmarks --list``; run one with ``python -m
benchmarks.NAME``.
"""

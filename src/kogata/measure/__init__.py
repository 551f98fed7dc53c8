"""Measurement: bytes, latency and scores; it measures and never judges."""

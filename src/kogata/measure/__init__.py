"""Measurement of bytes, latency and scores. It measures and never decides."""

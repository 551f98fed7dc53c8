"""The version of this package; it imports nothing, so that reading it costs nothing."""

__version__ = "0.1.0"

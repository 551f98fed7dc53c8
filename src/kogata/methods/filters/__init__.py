"""Transferred filters: some filters of a convolution are transforms of others."""

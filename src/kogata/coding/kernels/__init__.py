"""The inner loops, compiled by Numba. Coders import them when first used, so that importing Kogata stays cheap."""

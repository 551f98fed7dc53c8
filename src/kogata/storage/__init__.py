"""The ``.kogata`` file and the folder of a run: the only package that knows their layout."""

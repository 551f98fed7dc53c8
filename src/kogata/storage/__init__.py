"""The ``.kogata`` file and the folder of a run. No other package knows their layout."""

"""The machine: atomic files, environment, memory, progress."""

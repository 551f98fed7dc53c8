"""Services of the machine: atomic files, description of the environment, memory, progress bars."""

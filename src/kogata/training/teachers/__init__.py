"""Sources of a teacher's outputs: a live network, a cache on disk, an ensemble, or samples of a posterior."""

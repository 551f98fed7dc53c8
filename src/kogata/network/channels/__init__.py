"""Which channels of a model are coupled, and how they are removed."""

"""Low rank: a weight is factored into smaller matrices or tensors."""

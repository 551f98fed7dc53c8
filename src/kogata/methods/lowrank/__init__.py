"""Low rank: a weight is a product of thinner ones."""

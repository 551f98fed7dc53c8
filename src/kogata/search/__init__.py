"""Search: which structure suits which layer, and the error that each causes."""

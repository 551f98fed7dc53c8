"""Which structure fits which layer, and what each would cost."""

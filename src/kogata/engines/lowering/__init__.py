"""Lowering: from a weight's form to plain layers that are cheaper in one engine."""

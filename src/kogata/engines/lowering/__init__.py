"""Lowering: replace layers with forms by ordinary layers that are cheaper in a given engine."""

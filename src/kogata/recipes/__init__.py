"""Recipes: YAML to methods and budgets; the built-in recipes lie beside the code."""

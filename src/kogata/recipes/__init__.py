"""Recipes: methods and targets read from YAML. The built-in recipes are YAML files in this folder."""

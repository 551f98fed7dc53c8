"""Sharing: many weights, few values."""

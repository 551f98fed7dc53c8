"""Distillation: a model learns from another one."""

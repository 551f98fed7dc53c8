"""Distillation: a smaller model learns from another one."""

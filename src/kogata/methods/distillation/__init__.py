"""Distillation: a model learns from another one."""

from kogata.methods.distillation.recover import Recover

__all__ = ["Recover"]

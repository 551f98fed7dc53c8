"""The training loop, the wrapper of training-time methods, the terms of distillation losses, and teachers."""

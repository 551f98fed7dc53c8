"""The training loop, what a training-time method wraps around a model, distillation terms and teachers."""

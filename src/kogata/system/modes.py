"""PyTorch's modes as this package expects them, whatever the caller has switched on around a call."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def ordinary() -> Generator[None, None, None]:
    """Gradients on, inference mode and autocast off; as they were afterwards.

    >>> with torch.inference_mode(), ordinary():
    ...     torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    (True, False)
    """
    devices = {"cpu", *(["cuda"] if torch.cuda.is_available() else [])}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device in sorted(devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield

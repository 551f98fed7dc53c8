"""PyTorch's modes as this package expects them, whatever the caller has switched on around a call."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def ordinary() -> Generator[None, None, None]:
    """Gradients on, inference mode and autocast off; as they were afterwards.

    >>> with torch.inference_mode(), ordinary():
    ...     torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    (True, False)
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    enabled, cached = {device: torch.is_autocast_enabled(device) for device in devices}, torch.is_autocast_cache_enabled()
    with torch.inference_mode(mode=False), torch.enable_grad():
        try:
            # Not by a context of autocast: only the outermost one drops the weights that it has cast, so that training within
            # it would go on with those of the first step.
            for device in devices:
                torch.set_autocast_enabled(device, False)
            torch.set_autocast_cache_enabled(cached and not any(enabled.values()))
            yield
        finally:
            for device, before in enabled.items():
                torch.set_autocast_enabled(device, before)
            torch.set_autocast_cache_enabled(cached)

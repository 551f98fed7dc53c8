"""Run all batches through a model side by side, stopping before each layer, so that the layer can be changed on the way.

Each batch has a thread of its own, of which one runs at a time: a batch goes on until it reaches a layer that is to be looked
at, then the next batch does. When all have arrived, the layer is handed to the caller, who may replace its weight; then all
go on, through what the layer has become. So one pass shows every layer the inputs that come out of what was made of the layers
before it, while the statistics of only one layer are held.

A generator cannot be suspended inside a call of the user's forward; a thread can, and it keeps its own autograd and autocast
modes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kogata.system import memory

Visit = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Looks at the inputs of one call of a layer."""


class _Abandoned(BaseException):
    """Ends a batch whose caller has gone: not an Exception, so that no user's forward swallows it."""


class _Batch:
    """One batch on its way through the model."""

    def __init__(self, forward: Callable[[], object]) -> None:
        self.waiting: str | None = None  # the layer it has arrived at
        self.error: BaseException | None = None
        self.visits = Counter[str]()
        self._forward, self._abandoned = forward, False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def ident(self) -> int | None:
        """The thread's, once it has started."""
        return self._thread.ident

    def advance(self) -> None:
        """Run to the next layer or to the end. Raises what the forward raises."""
        self.waiting = None
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._stopped.acquire()
        memory.release()  # what this thread has freed, before the next one asks for as much
        if self.error is not None:
            raise self.error

    def arrive(self, name: str) -> None:
        """Called in the batch's own thread: wait until all others are here too."""
        self.waiting = name
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the thread where it waits."""
        if self._thread.is_alive():
            self._abandoned = True
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            with torch.no_grad():
                self._forward()
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the thread that waits for this one
            self.error = error
        self._stopped.release()


def in_turn(
    forwards: Sequence[Callable[[], object]], layers: Sequence[tuple[str, nn.Module, Visit]]
) -> Generator[str, None, None]:
    """The name of each layer, when every one of ``forwards`` has arrived at it and its ``Visit`` has seen all inputs.

    A layer that is called several times in one forward is handed over at its last call, its visit having seen all of them;
    how often that is, is counted in the first forward.
    """
    if not (forwards and layers):
        return
    calls = _count(forwards[0], layers)
    batches = [_Batch(forward) for forward in forwards]
    done: set[str] = set()

    def hook(name: str, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def arrived(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in done:
                return
            batch = next((batch for batch in batches if batch.ident == threading.get_ident()), None)
            if batch is None:  # the caller's own call of the layer that it was handed
                return
            visit(layer, args, kwargs)
            batch.visits[name] += 1
            if batch.visits[name] >= calls[name]:
                batch.arrive(name)

        return arrived

    handles = [module.register_forward_pre_hook(hook(n, visit), with_kwargs=True) for n, module, visit in layers]
    try:
        for batch in batches:
            batch.advance()
        while waiting := [batch.waiting for batch in batches if batch.waiting is not None]:
            name = waiting[0]
            yield name
            done.add(name)
            for batch in batches:
                if batch.waiting == name:
                    batch.advance()
    finally:
        for batch in batches:
            batch.abandon()
        for handle in handles:
            handle.remove()


def _count(forward: Callable[[], object], layers: Sequence[tuple[str, nn.Module, Visit]]) -> Counter[str]:
    """How often one forward calls each layer."""
    calls = Counter[str]()

    def counter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(_: nn.Module, __: tuple[Tensor, ...]) -> None:
            calls[name] += 1

        return count

    handles = [module.register_forward_pre_hook(counter(name)) for name, module, _ in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    memory.release()
    return calls

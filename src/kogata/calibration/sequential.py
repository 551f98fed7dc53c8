"""Run all batches through a model side by side, stopping before each layer, so that the layer can be changed on the way.

Each batch has a thread of its own, of which one runs at a time: a batch goes on until it reaches a layer or a weight that is to
be looked at, then the next batch does. When all have arrived, it is handed to the caller, who may replace it; then all go on,
through what it has become. So one pass shows every layer the inputs that come out of what was made of the layers before it,
while the statistics of only one layer are held.

A generator cannot be suspended inside a call of the user's forward; a thread can, and it keeps its own autograd, autocast and
function modes. Context variables are those of the caller, and what a forward keeps on its modules is kept apart for each batch.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from kogata.calibration.attributes import Apart
from kogata.calibration.watch import Reach, Watch
from kogata.system import memory

Visit = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Looks at the inputs of one call of a layer."""


class _Abandoned(BaseException):
    """Ends a batch whose caller has gone: not an Exception, so that no user's forward swallows it."""


class _Batch:
    """One batch on its way through the model."""

    def __init__(self, forward: Callable[[], object], models: Sequence[nn.Module], calls: Mapping[str, int]) -> None:
        self.waiting: str | None = None  # the layer it has arrived at
        self.error: BaseException | None = None
        self.left = Counter(calls)  # how often it has still to come to each layer
        self._forward, self._abandoned, self._ended = forward, False, False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._attributes, context = Apart(models), contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def runs_here(self) -> bool:
        """Whether this is its thread. The number of a thread would not tell: one that has ended hands it on."""
        return threading.current_thread() is self._thread

    def advance(self) -> None:
        """Run to the next layer or to the end. Raises what the forward raises."""
        self.waiting = None
        if self._thread.ident is None:
            self._thread.start()
        with self._attributes.installed():
            self._go.release()
            self._stopped.acquire()
        memory.release()  # what this thread has freed, before the next one asks for as much
        if self.error is not None:
            raise self.error

    def expects(self, name: str) -> bool:
        """Whether it is still on its way to its last use of a layer."""
        return self.left[name] > 0 and not self._ended

    def arrive(self, name: str) -> None:
        """Called in the batch's own thread: wait until all others are here too, if this is the last use."""
        self.left[name] -= 1
        if self.left[name] > 0:
            return
        self.waiting = name
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the thread where it waits."""
        if self._thread.is_alive():
            self._abandoned = True
            with self._attributes.installed():
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
        self._ended = True
        self._stopped.release()


def in_turn(
    forwards: Sequence[Callable[[], object]],
    models: Sequence[nn.Module],
    layers: Sequence[tuple[str, nn.Module, Visit]],
    watches: Sequence[Watch] = (),
    calls: Sequence[Mapping[str, int]] | None = None,
) -> Generator[str, None, None]:
    """The name of each layer or weight, when every one of ``forwards`` has arrived at it and its visit has seen all inputs.

    ``models`` are those that the forwards run; what a forward keeps on their modules is kept apart for each. ``layers`` are
    looked at as they are called, the weights of ``watches`` as an operation multiplies them; forwards that are to be watched
    are runs of a watch. What is used several times in one forward is handed over at its last use, its visit having seen all of
    them; ``calls`` says for each forward how often that is (see ``count``; counted here unless it is given). What two batches
    use in opposite orders is handed over in that of the first: the other goes through one of them as it still is.
    """
    if not (forwards and (layers or watches)):
        return
    calls = count(forwards, models, layers, watches) if calls is None else calls
    batches = [_Batch(forward, models, each) for forward, each in zip(forwards, calls, strict=True)]
    done: set[str] = set()

    def reach(name: str, look: Callable[[], None]) -> None:
        batch = next((batch for batch in batches if batch.runs_here()), None)
        if name in done or batch is None:  # without one it is the caller's own call of the layer that it was handed
            return
        look()
        batch.arrive(name)

    with _listening(reach, layers, watches):
        try:
            for batch in batches:
                batch.advance()
            while waiting := [batch.waiting for batch in batches if batch.waiting is not None]:
                missing = {name: next((batch for batch in batches if batch.expects(name)), None) for name in waiting}
                name = next((name for name in waiting if missing[name] is None), None)
                if name is None:  # each waits for another
                    cast("_Batch", missing[waiting[0]]).advance()
                    continue
                yield name
                done.add(name)
                for batch in batches:
                    if batch.waiting == name:
                        batch.advance()
        finally:
            for batch in batches:
                batch.abandon()


@contextmanager
def _listening(
    reach: Reach, layers: Sequence[tuple[str, nn.Module, Visit]], watches: Sequence[Watch]
) -> Generator[None, None, None]:
    """Let every call of a layer and every use of a weight call ``reach``."""

    def hook(name: str, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda layer, args, kwargs: reach(name, lambda: visit(layer, args, kwargs))

    with ExitStack() as stack:
        for name, module, visit in layers:
            stack.callback(module.register_forward_pre_hook(hook(name, visit), with_kwargs=True).remove)
        for watch in watches:
            stack.enter_context(watch.listening(reach))
        yield


def count(
    forwards: Sequence[Callable[[], object]],
    models: Sequence[nn.Module],
    layers: Sequence[tuple[str, nn.Module, Visit]],
    watches: Sequence[Watch],
) -> list[Counter[str]]:
    """How often each forward uses each layer and each weight.

    Each is run for it: how often a layer is called, or which of several experts, may depend on the data.
    """
    found: list[Counter[str]] = []
    attributes = [Apart(models) for _ in forwards]
    with _listening(lambda name, _: found[-1].update((name,)), layers, watches), torch.no_grad():
        for forward, own in zip(forwards, attributes, strict=True):
            found.append(Counter())
            with own.installed():
                forward()
            memory.release()
    return found

"""Run the command line many times without importing PyTorch as many times.

A fresh interpreter takes four seconds to import what a command needs, far longer than most commands take. ``serve`` is a
program that imports it once and then forks a child for each request. The child is a process with its own arguments, folder,
environment, streams and exit code, so that nothing of one command reaches the next; only the start of the interpreter is
shared. Tests about that start (help, a foreign package, an interrupted run) use the real program instead.

A process may only be forked while it has a single thread. The server therefore runs no tensor operation and leaves it to the
children to import ONNX Runtime, which starts threads when it is imported.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

LIMIT = 120  # seconds that a command may take
LOADED = (
    "kogata.cli", "kogata.methods", "kogata.recipes.recipe", "kogata.report.html", "kogata.storage.load",
    "kogata.tasks.builtin", "kogata.tasks.taskfile", "networkx", "numba", "onnxscript", "sklearn.datasets", "torch._dynamo",
    "torch.onnx._internal.exporter._core",
)  # fmt: skip


class Warm:
    """The client: start the server, ask it to run commands, end it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def run(
        self, arguments: Sequence[str], environment: dict[str, str], cwd: Path, streams: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run ``kogata`` in ``cwd``; ``streams`` is an existing folder in which the child may put what it prints."""
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        request = {"arguments": arguments, "environment": environment, "cwd": str(cwd), "streams": str(streams)}
        print(json.dumps(request), file=stdin, flush=True)
        code = int(stdout.readline())
        out, err = ((streams / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        """Wait until the server has ended, which it does at the end of its input."""
        self._server.communicate()
        assert self._server.returncode == 0


def serve() -> None:
    """Answer each request, a line of JSON, with the exit code of the child that ran it; minus a signal that killed it."""
    for module in LOADED:
        importlib.import_module(module)
    gc.freeze()  # the children share these objects' memory as long as no collection writes to it
    for line in sys.stdin:
        assert len(os.listdir("/proc/self/task")) == 1, "a process with several threads must not be forked"
        child = os.fork()
        if child == 0:
            _command(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _command(arguments: Sequence[str], environment: Mapping[str, str], cwd: str, streams: str) -> NoReturn:
    """Become the program with these arguments, run it and end the process."""
    signal.alarm(LIMIT)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(streams, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))
    sys.argv = ["kogata", *arguments]
    code: object = 0
    try:
        importlib.import_module("kogata.cli").main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()

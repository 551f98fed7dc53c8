"""A real browser, driven over the DevTools protocol through a pipe: what a page drew, logged and asked for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
DEADLINE_S = 60.0


def find() -> str | None:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@dataclass
class Pipe:
    """The two ends of a browser's pipe. Messages end with a zero byte."""

    send_fd: int
    receive_fd: int
    buffer: bytes = b""
    last_id: int = 0

    def send(self, message: dict[str, Any]) -> int:
        """Send a call; its number, which the answer repeats."""
        self.last_id += 1
        os.write(self.send_fd, json.dumps(message | {"id": self.last_id}).encode() + b"\0")
        return self.last_id

    def receive(self) -> dict[str, Any]:
        """The next answer or event."""
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self.buffer:
            ready, _, _ = select([self.receive_fd], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.receive_fd, 1 << 20) if ready else b""
            assert chunk, f"the browser closed its pipe, or said nothing for {DEADLINE_S} s"
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)


@dataclass
class Page:
    """A page that has loaded, what it logged as an error and what it asked the network for; without a session the browser."""

    pipe: Pipe
    session: str | None = None
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One protocol call and its answer."""
        number = self.pipe.send(
            {"method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        )
        while True:
            reply = self._receive()
            if reply.get("id") == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; waits for a promise."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def open(self, url: str) -> None:
        """Navigate and wait for the load event."""
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        message = self.pipe.receive()
        if message.get("sessionId") == self.session:  # not an event of a page before this one
            self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "assert", "warning"):
            self.errors.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(event["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])


@contextmanager
def started() -> Generator[Pipe, None, None]:
    """A browser with a profile of its own. Starting it takes longer than most pages, so that many may share it."""
    browser = find()
    assert browser is not None
    commands_r, commands_w = os.pipe()
    replies_r, replies_w = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        redirect = f'exec "$@" 3<&{commands_r} 4>&{replies_w}'  # the protocol speaks on descriptors 3 and 4
        process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands_r, replies_w),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_r)
        os.close(replies_w)
        try:
            yield Pipe(send_fd=commands_w, receive_fd=replies_r)
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)
            os.close(commands_w)
            os.close(replies_r)


@contextmanager
def opened(pipe: Pipe, html: Path, width: int, height: int, dark: bool) -> Generator[Page, None, None]:
    """The file in a new tab, with a viewport of ``width`` by ``height`` CSS pixels."""
    browser = Page(pipe)
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    try:
        page = Page(pipe, browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        phone = width < 600
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.open(html.resolve().as_uri())
        yield page
    finally:
        browser.call("Target.closeTarget", targetId=target)


def capture(page: Page, png: Path) -> None:
    """The whole page, from top to bottom, as a picture."""
    size = page.call("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    png.write_bytes(base64.b64decode(shot["data"]))


def screenshot(pipe: Pipe, html: Path, png: Path, width: int, height: int, dark: bool) -> None:
    """A picture of what a person sees on opening the file: ``width`` by ``height`` CSS pixels."""
    with opened(pipe, html, width, height, dark) as page:
        shot = page.call("Page.captureScreenshot", format="png")
    png.write_bytes(base64.b64decode(shot["data"]))

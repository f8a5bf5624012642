"""A headless Chromium over its debugging pipe: what a page asks for, says, measures and looks like.

The pipe (file descriptors 3 and 4, messages of JSON that end with a zero byte) needs no library and no port.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 60.0
# Gives the ends of the pipe the numbers that Chromium expects, then becomes Chromium.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass
class Seen:
    """What a visit showed.

    Attributes:
        requests: addresses that were asked for beside the page itself and data inside it.
        console: messages on the console and exceptions.
        values: results of the expressions, in their order.
        picture: a PNG of the whole page, where one was wanted.
    """

    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    picture: bytes = b""


class Browser:
    """Running from `with` to the end of its block."""

    def __enter__(self) -> "Browser":
        assert CHROMIUM is not None
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_child, self.write_end = os.pipe()
        self.read_end, from_child = os.pipe()
        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
        )
        quiet = ("--no-first-run", "--disable-component-update", "--disable-background-networking")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _LAUNCH,
                str(to_child),
                str(from_child),
                CHROMIUM,
                *flags,
                *quiet,
                f"--user-data-dir={self.home.name}",
                "about:blank",
            ],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.events = b"", 0, []
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired, AssertionError):
            self.process.kill()
            self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)
        self.home.cleanup()

    def visit(
        self,
        page: Path,
        expressions: tuple[str, ...] = (),
        *,
        width: int = 1280,
        dark: bool = False,
        picture: bool = False,
    ) -> Seen:
        """Open a file in a new tab, wait until it is loaded, evaluate expressions in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def ask(method: str, **arguments: Any) -> Any:
            return self.call(method, session, **arguments)

        for domain in ("Network", "Runtime", "Log", "Page"):
            ask(f"{domain}.enable")
        ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        ask("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired")
        seen = Seen()
        for expression in expressions:
            answer = ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
            assert "exceptionDetails" not in answer, answer
            seen.values.append(answer["result"].get("value"))
        # What was asked for late, at the next frame or two, is asked for by now.
        late = "new Promise(r => requestAnimationFrame(() => setTimeout(r, 200)))"
        ask("Runtime.evaluate", expression=late, awaitPromise=True)
        if picture:
            shot = ask("Page.captureScreenshot", captureBeyondViewport=True, clip=self._whole(ask))
            seen.picture = base64.b64decode(shot["data"])
        for event in self.events:
            self._note(event, page, seen)
        self.call("Target.closeTarget", targetId=target)
        return seen

    def _whole(self, ask: Any) -> dict[str, float]:
        size = ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _note(self, event: dict[str, Any], page: Path, seen: Seen) -> None:
        what, told = event["method"], event["params"]
        if what == "Network.requestWillBeSent":
            address = told["request"]["url"]
            if not address.startswith("data:") and address.partition("#")[0] != page.as_uri():
                seen.requests.append(address)
        elif what == "Runtime.consoleAPICalled":
            seen.console.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif what == "Runtime.exceptionThrown":
            seen.console.append(told["exceptionDetails"]["text"])
        elif what == "Log.entryAdded":
            seen.console.append(told["entry"]["text"])

    def call(self, method: str, session: str | None = None, **arguments: Any) -> Any:
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = monotonic() + _PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select([self.read_end], [], [], max(deadline - monotonic(), 0))
            assert ready, "the browser says nothing"
            piece = os.read(self.read_end, 1 << 20)
            assert piece, "the browser is gone"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

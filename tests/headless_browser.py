"""A headless Chromium spoken to over its debugging pipe, with nothing but the standard library."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of one browser; a context manager.

    Attributes:
      problems: exceptions, console messages and refused requests of the page.
      requests: addresses that the page asked for.
    """

    def __init__(self, profile: Path):
        assert CHROMIUM
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4; messages end with a zero byte. The
        # pipes are copied out of the way first, for one of them may itself be 3 or 4.
        start = (
            "import fcntl, os, sys\n"
            f"ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ({theirs_in}, {theirs_out})]\n"
            "os.dup2(ends[0], 3), os.dup2(ends[1], 4)\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.watchdog = threading.Timer(90, self.process.kill)  # a browser that hangs must not hang the tests
        self.watchdog.start()
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.answers = open(ours_out, "wb", buffering=0), open(ours_in, "rb", buffering=0)  # noqa: SIM115
        self.rest, self.count, self.session = b"", 0, None
        self.problems: list[dict[str, Any]] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_):
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(20)
        finally:
            self.watchdog.cancel()
            self.process.kill()
            self.process.wait()
            self.out.close()
            self.answers.close()

    def call(self, method: str, **parameters) -> dict[str, Any]:
        """One command of the DevTools protocol and its answer."""
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.count, "method": method, "params": parameters, **session}
        self.out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path, width: int = 1200, height: int = 900) -> None:
        """Loads a file and waits until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            chunk = self.answers.read(1 << 16)
            if not chunk:
                raise RuntimeError("The browser has gone.")
            self.rest += chunk
        one, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(one)
        if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(message["params"])
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

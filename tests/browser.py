"""A headless Chromium for tests, spoken to through a pipe in its own protocol: no further library.

with Chromium() as browser:
    page = browser.page(width=360, height=800, dark=True)
    page.open(path)
    page.evaluate("document.title")
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
)
PATIENCE = 60.0  # seconds for an answer


def pipe() -> list[int]:
    """A pipe whose ends have numbers above those that the browser takes."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in low]
    for end in low:
        os.close(end)
    return high


class Chromium:
    """A browser process, which ends with the block."""

    def __enter__(self) -> "Chromium":
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (read, self._to), (self._from, write) = pipe(), pipe()
        line = f'exec "$@" 3<&{read} 4>&{write}'  # where the browser reads commands, and answers
        words = [
            PROGRAM,
            *SWITCHES,
            f"--user-data-dir={self.folder.name}",
            "--remote-debugging-pipe",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", line, "chromium", *words],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._rest = b""
        self._last = 0
        self.events: list[dict] = []
        return self

    def __exit__(self, *error) -> None:
        os.close(self._to)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._from)
        self.folder.cleanup()

    def call(self, method: str, session: str | None = None, **params) -> dict:
        """Send a command and wait for its answer; events that come before it are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                break
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self) -> dict:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium has not answered for {PATIENCE:g} s")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def page(
        self, width: int = 1280, height: int = 900, dark: bool = False, still: bool = False
    ) -> "Page":
        """A new page of this size; `still`: its user wants less motion."""
        return Page(self, width, height, dark, still)


class Page:
    """A page, and what went wrong in it."""

    def __init__(self, browser: Chromium, width: int, height: int, dark: bool, still: bool):
        self.browser = browser
        # of its own, for a page remembers which scheme was chosen
        own = browser.call("Target.createBrowserContext")["browserContextId"]
        wishes = {"url": "about:blank", "browserContextId": own}
        target = browser.call("Target.createTarget", **wishes)["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def call(self, method: str, **params) -> dict:
        return self.browser.call(method, self.session, **params)

    def open(self, path: Path) -> None:
        """Load a file and wait until all of it is there."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + PATIENCE
        there = "document.readyState == 'complete' && location.protocol == 'file:'"
        while not self.evaluate(there):
            if time.monotonic() > end:
                raise TimeoutError(f"{path.name} has not loaded in {PATIENCE:g} s")
            time.sleep(0.05)

    def evaluate(self, expression: str):
        """The value of JavaScript, as JSON; promises are waited for."""
        wishes = {"awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", expression=expression, **wishes)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _events(self, method: str) -> list[dict]:
        own = (e for e in self.browser.events if e.get("sessionId") == self.session)
        return [e["params"] for e in own if e["method"] == method]

    def requests(self) -> list[str]:
        """The addresses that were asked for, without those inside the page itself."""
        urls = [e["request"]["url"] for e in self._events("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("data:", "blob:", "about:"))]

    def problems(self) -> list[str]:
        """Errors of scripts and of the console, requests that failed or left the file system."""
        found = [e["exceptionDetails"]["text"] for e in self._events("Runtime.exceptionThrown")]
        logged = [e["entry"] for e in self._events("Log.entryAdded")]
        found += [f"{e['text']} {e.get('url', '')}" for e in logged if e["level"] == "error"]
        said = self._events("Runtime.consoleAPICalled")
        found += [json.dumps(e["args"]) for e in said if e["type"] in ("error", "assert")]
        found += [f"failed: {e['errorText']}" for e in self._events("Network.loadingFailed")]
        return found + [url for url in self.requests() if not url.startswith("file:")]

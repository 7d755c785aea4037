"""Headless Chromium driven through a pipe: no driver, no websocket library.

``python tests/report/browser.py PAGE.html PICTURE.jpg [FRAME]`` takes a picture of a report.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT = 60.0


def browser_path() -> str | None:
    """Return the browser to test in; None when this machine has none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page in its own browser, with everything it complains about.

    Attributes:
        complaints: console errors, warnings, exceptions and failed requests, in order.
    """

    def __init__(self, page: Path, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        self.complaints: list[str] = []
        self._url, self._profile, self._size = page.resolve().as_uri(), profile, (width, height)
        self._number, self._buffer = 0, b""

    def __enter__(self) -> "Page":
        # The browser reads commands from file descriptor 3 and answers on 4.
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        command = [
            str(browser_path()), "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio",
            "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars",
            "--no-first-run", f"--user-data-dir={self._profile}", "about:blank",
        ]  # fmt: skip
        script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        self._session: str | None = None
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(timeout=20)

    def _open(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        width, height = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.call("Network.emulateNetworkConditions", offline=True, latency=0,
                  downloadThroughput=0, uploadThroughput=0)  # fmt: skip
        self.call("Page.navigate", url=self._url)
        self.until("document.readyState === 'complete'")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: it does not become true.
        """
        end = time.monotonic() + _TIMEOUT
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {_TIMEOUT} s: {expression}")
            time.sleep(0.05)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button at one point of the window and let go at another."""
        places = (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end))
        for kind, (x, y) in places:
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                buttons=0 if kind == "mouseReleased" else 1, clickCount=1,
            )  # fmt: skip

    def screenshot(self, path: Path, *, kind: str = "jpeg", scale: float = 1.0) -> None:
        """Save a picture of the whole page."""
        size = self.evaluate("[document.body.scrollWidth, document.body.scrollHeight]")
        more = {"quality": 65} if kind == "jpeg" else {}
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": scale}
        found = self.call(
            "Page.captureScreenshot", format=kind, clip=clip, captureBeyondViewport=True, **more
        )
        path.write_bytes(b64decode(found["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            if not part:
                raise RuntimeError("the browser went away")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        what = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(what["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.complaints.append(f"{what['type']}: {what['args']}")
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                self.complaints.append(what["entry"]["text"])
            case "Network.requestWillBeSent" if what["request"]["url"].startswith("http"):
                self.complaints.append(f"asks for {what['request']['url'][:80]}")


def picture(page: Path, out: Path, frame: int) -> None:
    """Show a frame of a report and take a picture of the whole page."""
    with tempfile.TemporaryDirectory() as profile, Page(page, Path(profile)) as shown:
        shown.until("document.getElementById('stage').dataset.frame !== undefined")
        shown.evaluate(
            f"(() => {{ const s = document.getElementById('seek'); s.value = {frame};"
            "s.dispatchEvent(new Event('input')); })()"
        )
        shown.until(f"document.getElementById('stage').dataset.frame === '{frame}'")
        shown.screenshot(out, scale=0.65)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)

"""A headless Chromium that a test drives: opens pages, presses what has a name, takes pictures. Over Chromium's own debugging protocol."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from websockets.sync.client import ClientConnection, connect

# None where there is none; scripts/install_test_packages.sh installs it.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# No question to anything but the page.
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-port=0"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--remote-allow-origins=*",
)
# The innermost visible element whose text, label or placeholder is the wanted one.
_FIND = """
(wanted) => {
    const text = (node) => (node.innerText || node.getAttribute("aria-label") || node.getAttribute("placeholder") || "").trim();
    const shown = [...document.querySelectorAll("button, a, [role], input, label, summary, span, p, div")].filter(
        (node) => node.getClientRects().length && text(node) === wanted);
    const rank = (node) => ["BUTTON", "A", "INPUT"].includes(node.tagName) || node.getAttribute("role") ? 0 : 1;
    return shown.sort((one, other) => rank(one) - rank(other) || other.contains(one) - one.contains(other))[0];
}"""


class Page:
    """One page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def run(self, program: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=program, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def size(self, width: int, height: int) -> None:
        """How much of a page is seen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def leave(self) -> None:
        """To an empty page: the UI asks its server every second and draws what moves, which takes half a core."""
        self.open("about:blank")

    def text(self) -> str:
        return str(self.run("document.body ? document.body.innerText : ''"))

    def wait_for(self, *texts: str, seconds: float = 60) -> None:
        """Returns when the page shows all of them."""
        until = time.monotonic() + seconds
        while missing := [one for one in texts if one not in self.text()]:
            assert time.monotonic() < until, f"{missing} not on the page after {seconds} s:\n{self.text()[:3000]}"
            time.sleep(0.3)

    def press(self, wanted: str, seconds: float = 30) -> None:
        """Presses a button, link or field as a mouse does, by what it is called."""
        self._press(f"({_FIND})({json.dumps(wanted)})", wanted, seconds)

    def press_last(self, wanted: str, seconds: float = 30) -> None:
        """As `press`, the last button of that name: of a dialog over the page."""
        buttons = "[...document.querySelectorAll('button')].filter((node) => node.getClientRects().length"
        self._press(f"{buttons} && node.innerText.trim() === {json.dumps(wanted)}).at(-1)", wanted, seconds)

    def press_switch(self, seconds: float = 30) -> None:
        """Presses the first switch that is seen."""
        self._press(
            "[...document.querySelectorAll('[role=switch]')].find((node) => node.getClientRects().length)", "a switch", seconds
        )

    def _press(self, find: str, wanted: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.run(f"!!({find})"):
            assert time.monotonic() < until, f"nothing called {wanted!r} on the page:\n{self.text()[:3000]}"
            time.sleep(0.3)
        place = self.run(
            f"(() => {{const node = {find}; node.scrollIntoView({{block: 'center'}}); const box = node.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def fill(self, label: str, text: str, seconds: float = 30) -> None:
        """Types into the field below a label."""
        labels = f"[...document.querySelectorAll('label')].find((node) => node.innerText.trim() === {json.dumps(label)})"
        fields = "[...document.querySelectorAll('input, textarea')].filter((node) => node.getClientRects().length)"
        after = f"{fields}.find((node) => {labels}.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING)"
        self._press(f"({labels} && {after})", label, seconds)
        self.write(text)

    def write(self, text: str) -> None:
        """Types into the field that was pressed."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Saves what is seen, in 64 colours: a third of the bytes."""
        # A page is filled in by many answers, "No access" until then; and a run's timeline is drawn after it.
        since, seen, until = time.monotonic(), "", time.monotonic() + 60
        while time.monotonic() < min(since + 4, until):
            if (text := self.text()) != seen or "No access" in text:
                since, seen = time.monotonic(), text
            time.sleep(0.3)
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(data)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def open_browser(width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A browser with nothing in it, for the block."""
    assert CHROMIUM is not None
    folder = Path(tempfile.mkdtemp(prefix="miniplm-browser-"))
    process = subprocess.Popen(
        [CHROMIUM, *_OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text():
            assert time.monotonic() < until, "Chromium did not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        (page,) = [one for one in httpx.get(f"http://127.0.0.1:{port}/json").json() if one["type"] == "page"]
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            opened = Page(socket)
            opened.size(width, height)
            yield opened
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

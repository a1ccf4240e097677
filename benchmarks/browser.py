"""A headless Chromium that a command drives by DevTools, over a pipe."""

import base64
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds for anything that a page does
SIZE = (900, 760)  # pixels of the window
FOREIGN = "evil.test"  # a name that leads to this machine, and is none of its own


class Browser:
    """A headless Chromium with one page.

    Args:
        program: its command.
        folder: for its files.

    Attributes:
        console: errors and exceptions that the page has raised.
        asked: the URLs that were asked for.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.console: list[str] = []
        self.asked: list[str] = []
        self._numbers, self._held = itertools.count(1), b""
        to_read, self._to_write = os.pipe()
        self._to_read, to_write = os.pipe()
        command = (
            f'exec "$0" --headless=new --no-sandbox --disable-gpu --remote-debugging-pipe '
            f'--no-first-run --user-data-dir="$1" --window-size={SIZE[0]},{SIZE[1]} '
            f'--host-resolver-rules="MAP {FOREIGN} 127.0.0.1" about:blank '
            f"3<&{to_read} 4>&{to_write}"
        )
        self._process = subprocess.Popen(
            ["sh", "-c", command, program, str(folder)],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._session = self._attach()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _attach(self) -> str:
        """Return the session of the one page."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            targets = self._send("Target.getTargets", {}, None)["targetInfos"]
            pages = [target["targetId"] for target in targets if target["type"] == "page"]
            if pages:
                options = {"targetId": pages[0], "flatten": True}
                return str(self._send("Target.attachToTarget", options, None)["sessionId"])
            time.sleep(0.1)
        raise SystemExit("the browser has no page")

    def call(self, method: str, **options: Any) -> Any:
        """Return what a method of DevTools returns."""
        return self._send(method, options, self._session)

    def evaluate(self, function: str, *arguments: Any) -> Any:
        """Return what a function returns in the page."""
        shown = ", ".join(json.dumps(argument) for argument in arguments)
        options = {"expression": f"({function})({shown})", "returnByValue": True}
        found = self.call("Runtime.evaluate", awaitPromise=True, **options)
        if "exceptionDetails" in found:
            raise SystemExit(f"the page failed: {found['exceptionDetails']}")
        return found["result"].get("value")

    def open(self, url: str) -> None:
        """Load a page, to its end."""
        self.call("Page.navigate", url=url)
        self.wait("() => document.readyState === 'complete'")

    def wait(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise SystemExit(f"never became true: {condition}")
            time.sleep(0.02)

    def picture(self, path: Path, scheme: str) -> None:
        """Write a picture of the page."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        time.sleep(0.3)
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()

    def _send(self, method: str, options: dict[str, Any], session: str | None) -> Any:
        """Call a method, and take in what happens until it returns."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": options}
        if session:
            message["sessionId"] = session
        os.write(self._to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self._held:
            if not select.select([self._to_read], [], [], PATIENCE)[0]:
                raise SystemExit("the browser says nothing")
            if not (part := os.read(self._to_read, 1 << 20)):
                raise SystemExit("the browser has ended")
            self._held += part
        text, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        """Note what a page asks for, and what goes wrong in it."""
        details = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(details["request"]["url"])
            case "Runtime.exceptionThrown":
                self.console.append(str(details["exceptionDetails"].get("exception")))
            case "Runtime.consoleAPICalled" if details["type"] in ("error", "warning"):
                self.console.append(str(details["args"]))
            case "Log.entryAdded" if details["entry"]["level"] in ("error", "warning"):
                self.console.append(str(details["entry"]["text"]))

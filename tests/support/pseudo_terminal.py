"""A program on a pseudo-terminal: keys in, what it shows out."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

ENVIRONMENT = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "MLX_EAGLE_HISTORY": ""}


class Terminal:
    """A Python program on a pseudo-terminal."""

    def __init__(self, program: str, *arguments: str, cwd: Path | None = None):
        self.screen = ""
        self._keys, child = pty.openpty()
        termios.tcsetwinsize(child, (24, 80))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
            cwd=cwd,
        )
        os.close(child)

    def press(self, keys: str) -> None:
        """Type keys; while they are many, read what the program says to them."""
        left = keys.encode("utf-8", "surrogateescape")
        while left:
            readable, writable, _ = select.select([self._keys], [self._keys], [], 20)
            assert readable or writable, "nobody reads the keys"
            if readable:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")
            if writable:
                left = left[os.write(self._keys, left[:1000]) :]

    def expect(self, line: str, answer: str) -> str:
        """Enter a line, wait for what it leads to and for the next prompt; returns all of it."""
        self.press(f"{line}\r")
        shown = self.wait_for(answer) + answer
        return shown + self.wait_for(">>>")

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Return the screen up to `text` once it appears, and forget it."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear in {self.screen!r}"
            if select.select([self._keys], [], [], left)[0]:
                self.screen += os.read(self._keys, 65536).decode(errors="replace")
        before, _, self.screen = self.screen.partition(text)
        return before

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal, which tells the program."""
        termios.tcsetwinsize(self._keys, (rows, columns))

    def end(self) -> int:
        """Read until the child has ended; returns its exit status."""
        deadline = time.monotonic() + 20
        with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
            while select.select([self._keys], [], [], max(deadline - time.monotonic(), 0))[0]:
                if not (shown := os.read(self._keys, 65536)):
                    break  # macOS reports its end
                self.screen += shown.decode(errors="replace")
        return self.process.wait(timeout=1)

    def close(self) -> None:
        """End the child, however the test went."""
        self.process.kill()
        self.process.wait()
        os.close(self._keys)

"""`mlx-eagle serve` as a process of its own, for commands that ask it as its users do."""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue

BANNER = re.compile(r" at (http://\S+) \(Ctrl-C")
PATIENCE = 900.0  # seconds until a model is served
LAST = 50  # lines of its log that are shown where it fails


class ServerProcess:
    """A server on a free port of loopback, from its start to its end.

    Args:
        cache: the folder that it keeps everything in.
        options: of `mlx-eagle serve`.

    Attributes:
        url: where it answers.
        log: the lines that it has written.
    """

    def __init__(self, cache: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mlx_eagle.cli", "serve", "--port", "0", *options]
        environment = os.environ | {"MLX_EAGLE_CACHE": str(cache)}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=cache
        )
        atexit.register(self.kill)  # whatever becomes of the command
        self.log: list[str] = []
        self._ready: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.url = self._ready.get(timeout=PATIENCE)
        except Empty:
            self.url = ""
        if not self.url:
            self.kill()
            raise SystemExit("no server came up:\n" + "\n".join(self.log[-LAST:]))

    def _read(self) -> None:
        """Take in what it writes."""
        assert self.process.stderr is not None, "stderr is a pipe"
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if found := BANNER.search(line):
                self._ready.put(found[1])
        self._ready.put("")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def memory(self) -> int:
        """Return the bytes that are resident."""
        text = subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)], text=True)
        return int(text) * 1024

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it in good order; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

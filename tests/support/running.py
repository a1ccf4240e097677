"""Two ranks as programs of their own, which tests kill, stop and lead astray."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlx_eagle.load_options import PIPELINE, TENSOR
from shards import write_tiny

PROGRAM = Path(__file__).with_name("leading.py")
SOON = 20.0  # seconds, in which a busy machine gets around to what takes two
PATIENCE = {"start": 300.0, "silence": 20.0, "least": 20.0, "first": 90.0}


class Running:
    """Rank 0 as a program (`leading.py`), and its follower.

    Args:
        folder: the target.
        fault: what the follower does wrong.
        patience: of `Patience`.
        parallel: how the target is divided.
    """

    def __init__(
        self, folder: Path, fault: str, patience: dict[str, float], parallel: str = TENSOR
    ) -> None:
        self._pid_file = folder.parent / "pid"
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), json.dumps(patience), fault, parallel],
            env={**os.environ, "LEADING_PID": str(self._pid_file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.follower: int | None = None
        self.written = ""  # what it wrote since it was last listened to, once it has ended

    def wait_until_loaded(self) -> None:
        """Wait for the first line, unless it ends before."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.follower = int(line.split()[1]) if line.startswith("follower") else None

    def wait_for_follower(self) -> None:
        """Wait until there is a follower, which has not connected yet."""
        while not (self._pid_file.exists() and (said := self._pid_file.read_text())):
            assert self.process.poll() is None, self.end()
            time.sleep(0.02)
        self.follower = int(said)

    def read_tokens(self, n: int) -> None:
        """Wait for so many tokens."""
        assert self.process.stdout is not None
        for _ in range(n):
            assert self.process.stdout.readline().startswith("token")

    def end(self) -> str:
        """Return what it has to say, once it has ended."""
        self.written, errors = self.process.communicate(timeout=90)
        return errors

    def kill_follower(self, patience: float = SOON) -> str:
        """Kill the follower; return what rank 0 has to say, which must end in time, with 1."""
        self.tell_follower(signal.SIGKILL)
        killed = time.monotonic()
        errors = self.end()
        assert time.monotonic() - killed < patience
        assert self.process.returncode == 1
        return errors

    def tell_follower(self, number: int) -> None:
        """Send the follower a signal; never to anybody else."""
        assert self.follower is not None, self.end()
        os.kill(self.follower, number)

    def follower_is_gone(self) -> bool:
        """Say whether the follower has ended, now or soon."""
        ends = time.monotonic() + SOON
        while time.monotonic() < ends:
            try:
                self.tell_follower(0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False


Start = Callable[..., Running]


@contextmanager
def starting(place: Path) -> Iterator[Start]:
    """Return what starts a rank 0 that decodes without end; what is left afterwards is killed."""
    running: list[Running] = []

    def begin(fault: str = "none", parallel: str = TENSOR, **changes: Any) -> Running:
        family = "qwen2" if parallel == PIPELINE else "llama"
        folder, _ = write_tiny(place / family, family, num_hidden_layers=2)
        running.append(Running(folder, fault, PATIENCE | changes, parallel))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        if one.follower is not None:
            with suppress(ProcessLookupError):
                os.kill(one.follower, signal.SIGKILL)
        one.process.communicate()

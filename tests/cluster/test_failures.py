"""A rank that dies, stands still or does something else: an error by name, and nobody left over."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cases import broad
from shards import write_tiny

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "leading.py"
SOON = 20.0  # seconds, in which a busy machine gets around to what takes two
PATIENCE = {"start": 300.0, "silence": 20.0, "least": 20.0, "first": 90.0}


class Running:
    """Rank 0 as a program, and its follower."""

    def __init__(self, folder: Path, fault: str, patience: dict[str, float]) -> None:
        pid_file = folder.parent / "pid"
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), json.dumps(patience), fault],
            env={**os.environ, "LEADING_PID": str(pid_file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.follower = int(line.split()[1]) if line.startswith("follower") else None

    def read_tokens(self, n: int) -> None:
        assert self.process.stdout is not None
        for _ in range(n):
            assert self.process.stdout.readline().startswith("token")

    def end(self) -> str:
        """Return what it has to say, once it has ended."""
        _, errors = self.process.communicate(timeout=90)
        return errors

    def tell_follower(self, number: int) -> None:
        """Send the follower a signal; never to anybody else."""
        assert self.follower is not None, self.end()
        os.kill(self.follower, number)

    def follower_is_gone(self) -> bool:
        ends = time.monotonic() + SOON
        while time.monotonic() < ends:
            try:
                self.tell_follower(0)
            except ProcessLookupError:
                return True
            time.sleep(0.05)
        return False


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start rank 0, which decodes without end; whatever is left afterwards is killed."""
    running: list[Running] = []

    def begin(fault: str = "none", **changes: Any) -> Running:
        folder, _ = write_tiny(tmp_path / "llama", "llama", num_hidden_layers=2)
        running.append(Running(folder, fault, PATIENCE | changes))
        return running[-1]

    yield begin
    for one in running:
        one.process.kill()
        if one.follower is not None:
            with suppress(ProcessLookupError):
                os.kill(one.follower, signal.SIGKILL)
        one.process.communicate()


@pytest.mark.parametrize("case", [0, *(broad(n) for n in range(1, 10))])
def test_a_follower_that_is_killed_ends_rank_0_by_name(case: int, start: Start) -> None:
    running = start()
    running.read_tokens(3)
    time.sleep(random.Random(case).uniform(0, 0.5))
    running.tell_follower(signal.SIGKILL)
    killed = time.monotonic()
    errors = running.end()
    assert time.monotonic() - killed < SOON
    assert running.process.returncode == 1
    assert "error: rank 1 on 127.0.0.1 has ended" in errors


@pytest.mark.broad
def test_a_follower_ends_when_rank_0_is_killed(start: Start) -> None:
    running = start()
    running.read_tokens(3)
    running.process.kill()
    running.process.wait()
    assert running.follower_is_gone()


@pytest.mark.broad
def test_a_follower_that_stands_still_ends_rank_0_in_time(start: Start) -> None:
    running = start(silence=5.0)
    running.read_tokens(3)
    running.tell_follower(signal.SIGSTOP)
    assert "error: rank 1 on 127.0.0.1 stands still" in running.end()
    assert running.process.returncode == 1
    running.tell_follower(signal.SIGCONT)
    assert running.follower_is_gone()


@pytest.mark.broad
@pytest.mark.parametrize("fault", ["skips", "other tree", "lies"])
def test_a_follower_that_does_something_else_gives_no_text(fault: str, start: Start) -> None:
    running = start(fault, least=5.0)
    assert "error: " in running.end()
    assert running.process.returncode == 1
    assert running.follower_is_gone()


@pytest.mark.broad
def test_a_follower_of_another_version_is_refused(start: Start) -> None:
    running = start("old")
    assert "127.0.0.1 (rank 1) has mlx 0.1 (here: " in running.end()
    assert running.process.returncode == 1

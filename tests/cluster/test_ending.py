"""A process that waits in MLX, which nothing can interrupt, ends with one line and alone."""

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mlx_eagle.cluster.messages import Join
from mlx_eagle.cluster.ring import environment

# Waits as MLX does, with the interpreter's lock.
WAITS = """
import sys
from mlx_eagle.cluster.ending import deadline
with deadline(0.3, "rank 0 has waited\\nfor the others", [int(sys.argv[1])]):
    sum(range(1 << 60))
"""
ENDS = """
from mlx_eagle.cluster.ending import deadline, end_now
with deadline(60, "not said"):
    pass
end_now("rank 1 has ended", [])
"""
JOINS = """
from mlx_eagle.cluster import ring
ring.JOIN_SECONDS = 1
ring.join_launched()
"""


def run(program: str, *words: str, stdout: int | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *words]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_wait_that_holds_the_interpreter_is_ended_in_one_line_and_its_processes_too() -> None:
    with subprocess.Popen(["sleep", "60"]) as follower:
        follower.send_signal(signal.SIGSTOP)
        program = run(WAITS, str(follower.pid))
        _, errors = program.communicate(timeout=30)
        assert (program.returncode, errors) == (1, "error: rank 0 has waited for the others\n")
        assert follower.wait(10) == -signal.SIGKILL


def test_a_process_that_ends_puts_its_terminal_right() -> None:
    terminal, end = pty.openpty()
    modes = termios.tcgetattr(end)
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(end, termios.TCSANOW, modes)
    program = run(ENDS, stdout=end)
    assert program.communicate(timeout=30)[1] == "error: rank 1 has ended\n"
    assert program.returncode == 1
    assert termios.tcgetattr(end)[3] & (termios.ECHO | termios.ICANON)
    assert b"\x1b[?25h" in os.read(terminal, 1000), "the cursor is there"
    os.close(terminal)
    os.close(end)


@pytest.mark.broad
def test_others_that_never_join_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ring = [[f"127.0.0.1:{port}"], ["127.0.0.1:1"]]
    for name, value in environment(0, Join(ring=ring), tmp_path).items():
        monkeypatch.setenv(name, value)
    program = run(JOINS)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 1
    assert errors.splitlines()[-1] == (
        "error: the process of rank 0 has waited 1 s for the others; start all of them at once, "
        "with mlx.launch"
    )
    assert "Traceback" not in errors

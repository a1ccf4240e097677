"""A rank that dies, stands still or does something else: an error by name, and nobody left over."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import broad
from leading import FAULTY_PASS
from running import Running, Start, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as begin:

        def begin_and_load(*args: Any, **changes: Any) -> Running:
            running = begin(*args, **changes)
            running.wait_until_loaded()
            return running

        yield begin_and_load


@pytest.mark.parametrize("case", [0, *(broad(n) for n in range(1, 10))])
def test_a_follower_that_is_killed_ends_rank_0_by_name(case: int, start: Start) -> None:
    running = start()
    running.read_tokens(3)
    time.sleep(random.Random(case).uniform(0, 0.5))
    assert "error: rank 1 on 127.0.0.1 has ended" in running.kill_follower()


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
    assert running.follower_is_gone(), "although it was stopped"


@pytest.mark.broad
@pytest.mark.parametrize("fault", ["skips", "other tree", "lies"])
def test_a_follower_that_does_something_else_gives_no_text(fault: str, start: Start) -> None:
    running = start(fault, least=5.0)
    assert "error: " in running.end()
    tokens = running.written.count("token ")
    assert tokens < FAULTY_PASS if fault != "lies" else tokens < FAULTY_PASS + 2, "it was not wrong"
    assert running.process.returncode == 1
    assert running.follower_is_gone()


@pytest.mark.broad
def test_a_follower_of_another_version_is_refused(start: Start) -> None:
    running = start("old")
    assert "127.0.0.1 (rank 1) has mlx 0.1 (here: " in running.end()
    assert running.process.returncode == 1


@pytest.mark.broad
def test_an_error_of_a_follower_alone_while_the_target_is_tried_is_named(start: Start) -> None:
    running = start("no memory")
    assert "error: rank 1 on 127.0.0.1 ends: [malloc] no memory is left" in running.end()
    assert running.process.returncode == 1


INTERRUPTED = """
from mlx_eagle.cluster import cluster, launch
from mlx_eagle.cluster.hosts import loopback
from mlx_eagle.errors import ClusterError

def interrupt(*_):
    raise KeyboardInterrupt

started, start = [], launch._start
launch._start = lambda *how: started.append(start(*how)) or started[-1]
cluster.seconds_per_sum = interrupt
try:
    launch.start_cluster(loopback(2))
except KeyboardInterrupt:
    print([one.process.poll() is None for one in started])
try:
    launch.start_cluster(loopback(2))
except ClusterError as error:
    print(error, [one.process.poll() is None for one in started])
"""


@pytest.mark.broad
def test_a_start_that_is_interrupted_leaves_no_follower_and_is_not_tried_again() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    first, second = ended.stdout.splitlines()
    assert first == "[False]"
    assert "has joined other hosts before" in second and "[False, False]" in second


@pytest.mark.broad
def test_a_follower_that_is_lost_while_the_target_is_tried_is_named(start: Start) -> None:
    running = start("leaves")
    assert "error: rank 1 on 127.0.0.1 has ended" in running.end()
    assert running.process.returncode == 1

"""A rank that dies, stands still or does something else: an error by name, and nobody left over."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import broad
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
    assert running.process.returncode == 1
    assert running.follower_is_gone()


@pytest.mark.broad
def test_a_follower_of_another_version_is_refused(start: Start) -> None:
    running = start("old")
    assert "127.0.0.1 (rank 1) has mlx 0.1 (here: " in running.end()
    assert running.process.returncode == 1


@pytest.mark.broad
def test_a_follower_that_is_lost_while_the_target_is_tried_is_named(start: Start) -> None:
    running = start("leaves")
    assert "error: rank 1 on 127.0.0.1 has ended" in running.end()
    assert running.process.returncode == 1

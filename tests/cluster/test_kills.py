"""A rank that is lost while it starts, and stages of a pipeline: by name, and nobody is left."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_eagle.load_options import PIPELINE, TENSOR
from running import SOON, Start, starting

pytestmark = pytest.mark.broad
JOINING = 40.0  # seconds in which the ring is joined, or given up


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as begin:
        yield begin


@pytest.mark.parametrize("case", range(9))
def test_a_follower_that_is_killed_while_it_starts_ends_rank_0(case: int, start: Start) -> None:
    """While it connects, joins, loads, or is tried: a part of every layer, or a stage."""
    running = start(parallel=(TENSOR, PIPELINE)[case % 2], start=JOINING)
    running.wait_for_follower()
    time.sleep(random.Random(case).uniform(0, 6))
    errors = running.kill_follower(JOINING + SOON)
    # MLX cannot be left while it waits for a ring, and does not say for whom.
    errors = errors.splitlines()[-1]
    late = f"error: the process of rank 0 has waited {JOINING:.0f} s for the others; every host "
    assert errors.startswith(("error: rank 1 on 127.0.0.1 ", late))


@pytest.mark.parametrize("case", range(3))
def test_a_stage_that_is_killed_ends_rank_0_by_name(case: int, start: Start) -> None:
    running = start(parallel=PIPELINE)
    running.wait_until_loaded()
    running.read_tokens(3)
    time.sleep(random.Random(case).uniform(0, 0.5))
    assert "error: rank 1 on 127.0.0.1 has ended" in running.kill_follower()


def test_a_stage_that_stands_still_ends_rank_0_in_time(start: Start) -> None:
    running = start(parallel=PIPELINE, silence=5.0)
    running.wait_until_loaded()
    running.read_tokens(3)
    running.tell_follower(signal.SIGSTOP)
    assert "error: rank 1 on 127.0.0.1 stands still" in running.end()
    assert running.process.returncode == 1
    assert running.follower_is_gone(), "although it was stopped"


@pytest.mark.parametrize("fault", ["skips", "other tree", "lies"])
def test_a_stage_that_does_something_else_gives_no_text(fault: str, start: Start) -> None:
    running = start(fault, PIPELINE, least=5.0)
    running.wait_until_loaded()
    assert "error: " in running.end()
    assert running.process.returncode == 1
    assert running.follower_is_gone()

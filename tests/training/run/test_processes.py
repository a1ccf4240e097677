"""Where one process fails or is killed, the others end as well, and say why."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from cases import broad
from mlx_eagle.errors import EagleError
from mlx_eagle.training.run import heartbeat, processes
from mlx_eagle.training.run.checkpoint import newest_checkpoint
from mlx_eagle.training.run.processes import Processes
from toy_training import started_in_two

FULL = "the disk is full"


@pytest.mark.parametrize(
    ("rank", "update", "how", "others"),
    [
        (1, 4, "killed", "EagleError: the process of rank 0 has lost another one"),
        broad(0, 12, FULL, "EagleError: the process of rank 0 failed or was stopped, as it says"),
        broad(1, 4, FULL, "EagleError: the process of rank 1 failed or was stopped"),
        broad(0, 4, "killed", "EagleError: the process of rank 1 has lost another one"),
    ],
)
def test_two_processes_end_where_one_does(
    rank: int, update: int, how: str, others: str, tmp_path: Path
) -> None:
    with started_in_two(tmp_path, failing=[rank, update, how]) as programs:
        said = [program.communicate(timeout=60)[1].splitlines() for program in programs]
    other = 1 - rank
    assert programs[other].returncode == 1, said
    assert any(others in line for line in said[other]), said
    if how == "killed":
        assert programs[rank].returncode == -9
    else:
        assert (programs[rank].returncode, said[rank][-1].split(": ")[1]) == (1, how)
    assert newest_checkpoint(tmp_path / "0" / "checkpoint") is not None


class Threads:
    """Two processes as threads of this one: what they add up, they hand over here."""

    def __init__(self) -> None:
        self.given: list[list[np.ndarray]] = [[], []]
        self.barrier = threading.Barrier(2, timeout=20)
        self.raised: list[BaseException | None] = [None, None]

    def run(self, *works: Callable[[Processes], None]) -> list[str]:
        """Run one function for each; returns what they raised."""
        threads = [
            threading.Thread(target=self._run, args=(n, work)) for n, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [repr(error) for error in self.raised]

    def _run(self, rank: int, work: Callable[[Processes], None]) -> None:
        try:
            work(InThread(rank, self))
        except BaseException as error:
            self.raised[rank] = error


class InThread(Processes):
    """One of two processes, of which the other is a thread as well."""

    def __init__(self, rank: int, threads: Threads) -> None:
        super().__init__()
        self.rank, self.size, self._threads = rank, 2, threads

    def _all_sums(self, arrays: list[mx.array]) -> list[mx.array]:
        given, barrier = self._threads.given, self._threads.barrier
        try:
            given[self.rank] = [np.array(array) for array in arrays]
            barrier.wait()
            found = [sum(parts) for parts in zip(*given, strict=True)]
            barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RuntimeError("connection lost") from error
        return [mx.array(array) for array in found]


def test_a_failure_before_a_meeting_ends_all_and_each_says_who_failed() -> None:
    def failing(processes: Processes) -> None:
        with processes.ending_together():
            raise EagleError(FULL)

    def meeting(processes: Processes) -> None:
        with processes.ending_together():
            processes.total([1.0])

    own, told = Threads().run(failing, meeting)
    assert own == f"EagleError('{FULL}')"
    assert "the process of rank 0 failed or was stopped" in told and "rank 1 ends too" in told


def test_all_that_fail_at_once_say_their_own_reason() -> None:
    def failing(processes: Processes) -> None:
        with processes.ending_together():
            raise EagleError(f"of {processes.rank}")

    assert Threads().run(failing, failing) == ["EagleError('of 0')", "EagleError('of 1')"]


def test_nobody_ends_before_the_last_one_has_done_its_work() -> None:
    done = list[str]()

    def working(processes: Processes) -> None:
        with processes.ending_together():
            processes.meet()
            done.append("work")
        done.append("over")

    assert Threads().run(working, working) == ["None", "None"]
    assert done == ["work", "work", "over", "over"]


@pytest.mark.parametrize("stop", [EagleError(FULL), KeyboardInterrupt()])
def test_the_others_sleep_while_the_first_works_and_learn_that_it_failed(
    stop: BaseException, tmp_path: Path
) -> None:
    file, done = tmp_path / "working", list[str]()

    def work(processes: Processes) -> None:
        with processes.ending_together(), processes.first_before_others(file):
            assert file.exists() == processes.is_first
            done.append(f"work of {processes.rank}")
            if processes.is_first:
                raise stop

    own, told = Threads().run(work, work)
    assert own == repr(stop)
    assert "the process of rank 0 failed or was stopped" in told
    assert done == ["work of 0"] and not file.exists()


def test_the_others_work_after_the_first_has(tmp_path: Path) -> None:
    done = list[int]()

    def work(processes: Processes) -> None:
        with processes.ending_together(), processes.first_before_others(tmp_path / "working"):
            done.append(processes.rank)

    assert Threads().run(work, work) == ["None", "None"]
    assert done == [0, 1]


def test_one_that_is_interrupted_in_its_sleep_does_not_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        threads.barrier.abort()  # as its connections close when it ends
        is_interrupted.set()
        raise KeyboardInterrupt

    def work(processes: Processes) -> None:
        with processes.ending_together(), processes.first_before_others(tmp_path / "working"):
            assert is_interrupted.wait(20) and processes.is_first

    is_interrupted = threading.Event()
    monkeypatch.setattr("mlx_eagle.training.run.processes.sleep", interrupted)
    threads = Threads()
    first, second = threads.run(work, work)
    assert second == "KeyboardInterrupt()"
    assert "the process of rank 0 has lost another one" in first


@pytest.mark.parametrize("is_working", [True, False])
def test_one_that_stands_still_is_lost_to_those_who_wait(
    is_working: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections stay open: in MLX the others would wait for ever."""

    def still(processes: Processes) -> None:
        if is_working:
            (tmp_path / "working").touch()
        (tmp_path / ".process-0").touch()
        processes.meet()
        processes.meet()

    def waiting(processes: Processes) -> None:
        with processes.ending_together():
            processes.keep_heartbeat(tmp_path)
            with processes.first_before_others(tmp_path / "working"):
                processes.meet()

    monkeypatch.setattr(heartbeat, "LOST", 0.3)
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    raised = Threads().run(still, waiting)[1]
    assert "the process of rank 1 has lost that of rank 0: it was killed, stands still" in raised


def test_one_process_alone_meets_nobody(tmp_path: Path) -> None:
    alone, arrays = Processes(), {"x": mx.array([1.0])}
    with alone.ending_together(), alone.first_before_others(tmp_path / "working"):
        alone.meet()
    assert not list(tmp_path.iterdir())
    assert alone.total([2.0]) == [2.0]
    assert alone.average(arrays) is arrays and alone.of_first(arrays) is arrays


def test_a_group_that_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("[ring] Couldn't connect (error: 111)")

    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setattr(mx.distributed, "init", fail)
    with pytest.raises(
        EagleError, match="^the process of rank 1 cannot join the others: .*launch$"
    ):
        Processes.joined()


def test_folders_that_are_not_shared_are_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SHOWN_AFTER", 0.2)
    two = Processes()
    two.size = 2
    monkeypatch.setattr(two, "meet", lambda: None)  # the other one has met, with its own folder
    with pytest.raises(EagleError, match="no file of rank 1 .* must see the same folder"):
        two.keep_heartbeat(tmp_path)

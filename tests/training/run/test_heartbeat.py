"""Whoever waits for other processes sees that they are there, have ended or were killed."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.training.run import heartbeat as module
from mlx_eagle.training.run.heartbeat import Heartbeats, heartbeat


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.02, "LOST": 0.3, "LEFT": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)


def lost_after(beats: Heartbeats, seconds: float) -> list[int]:
    """Look as one who waits does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if lost := beats.lost():
            return lost
        time.sleep(0.01)
    return []


def test_one_that_works_is_there_and_one_that_has_ended_has_left(tmp_path: Path) -> None:
    def work() -> None:
        with suppress(KeyboardInterrupt), heartbeat(tmp_path / "1"):
            is_begun.set()
            is_over.wait()
            raise KeyboardInterrupt

    is_begun, is_over, worker = threading.Event(), threading.Event(), threading.Thread(target=work)
    worker.start()
    is_begun.wait()
    beats = Heartbeats({1: tmp_path / "1"})
    assert lost_after(beats, 0.6) == []
    is_over.set()
    worker.join()
    assert not list(tmp_path.iterdir())
    assert lost_after(beats, 0.05) == [], "what it has sent last may be on its way"
    assert lost_after(beats, 5) == [1]


def test_one_that_beats_no_more_is_lost(tmp_path: Path) -> None:
    files = {2: tmp_path / "2", 3: tmp_path / "3"}
    files[2].touch()
    with heartbeat(files[3]):
        beats = Heartbeats(files)
        assert lost_after(beats, 0.2) == []
        assert lost_after(beats, 5) == [2]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "1"
    with pytest.raises(EagleError, match="^cannot write .*/1: No such file"), heartbeat(absent):
        pass


def test_a_folder_that_cannot_be_read_for_a_moment_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "beat"
    file.touch()
    beats = Heartbeats({1: file})
    monkeypatch.setattr(module, "LEFT", 0.0)

    def stale(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as hidden:
        hidden.setattr(Path, "stat", stale)
        assert beats.lost() == []
    file.unlink()
    assert [beats.lost(), beats.lost()] == [[], [1]]  # it is given LEFT from when that is seen

"""Rows of prompts on a disk that others fill, in a folder in which others write."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from kept_rows import ANSWER, BLOCK, draw, files_of
from mlx_eagle.engine import Engine
from mlx_eagle.session.prefix_files import PrefixFiles
from mlx_eagle.session.rows_folder import (
    LOCK,
    clear_folder,
    is_written,
    list_folder,
    prefix_folder,
    whole_files,
)
from served import close_files


def ask(engine: Engine, ids: list[int]) -> Any:
    """Return an answer of one token: rows of the prompt are enough."""
    return engine.generate(ids, **ANSWER | {"max_tokens": 1})


def test_files_stay_within_their_limit_and_can_be_cleared(keeping: Engine) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ask(keeping, draw(20, 120))
    files = files_of(keeping)
    size = files.nbytes
    files._max_bytes = int(1.5 * size)
    for seed in range(21, 24):
        ask(keeping, draw(seed, 120))
        assert files.nbytes <= 1.5 * size
    assert files.n_evicted > 0
    assert files.take_note() == "", "that is what was asked for"
    ((_, n_bytes),) = list_folder(prefix_folder()).values()
    assert n_bytes == files.nbytes == clear_folder(prefix_folder())
    assert list_folder(prefix_folder()) == {}


def test_a_prompt_that_does_not_fit_is_written_as_far_as_it_does(keeping: Engine) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ids = draw(20, 120)
    ask(keeping, ids)
    files = files_of(keeping)
    files.clear()
    assert (files.longest(ids), files.nbytes, files.n_damaged) == (0, 0, 0)
    ask(keeping, ids)
    sizes = [file.n_bytes for file in whole_files(prefix_folder())]
    assert len(sizes) == 3
    files._max_bytes = sum(sizes) - 1
    files.clear()
    ask(keeping, ids)
    assert (files.longest(ids), files.n_evicted) == (6 * BLOCK, 0)


def fill_disk(monkeypatch: pytest.MonkeyPatch, free: Callable[[], int], total: int) -> None:
    """Let the disk seem to have so many bytes."""
    usage = lambda _: SimpleNamespace(total=total, free=free())  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_a_disk_that_others_filled_keeps_our_rows_and_gets_no_more(
    keeping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ask(keeping, draw(20, 120))
    files = files_of(keeping)
    size = files.nbytes
    fill_disk(monkeypatch, lambda: 10 * size, 1000 * size)
    said = [ask(keeping, draw(seed, 120)).stats.advice for seed in (21, 22, 23)]
    assert (files.nbytes, files.n_evicted) == (size, 0)
    told = ["is free: rows of prompts are not written" in advice for advice in said]
    assert told == [False, True, False], "with the next answer, and once"


def test_what_little_room_is_lacking_our_oldest_rows_make(
    keeping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    for seed in (20, 21):
        ask(keeping, draw(seed, 120))
    files = files_of(keeping)
    size = files.nbytes
    fill_disk(monkeypatch, lambda: 101 * size - files.nbytes, 1000 * size)
    said = [ask(keeping, draw(seed, 120)).stats.advice for seed in (22, 23, 24)]
    found = [files.longest(draw(seed, 120)) for seed in (20, 21, 24)]
    assert (found[0], found[2]) == (0, 7 * BLOCK)
    assert ["oldest rows of prompts there were removed" in advice for advice in said] == [
        False,
        True,
        False,
    ]


def test_room_is_made_before_a_file_is_written_and_a_failure_is_said(
    keeping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ask(keeping, draw(20, 120))
    files = files_of(keeping)
    files._max_bytes = size = files.nbytes
    held = list[int]()

    def fail(*_: Any) -> None:
        held.append(files.nbytes)
        raise RuntimeError("[write] Unable to write 9 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    assert ask(keeping, draw(21, 120)).finish_reason == "length"
    assert held[0] < size
    assert "could not be written" in files.take_note()
    assert not list(prefix_folder().rglob("*.partial*"))


@pytest.fixture
def written(keeping: Engine) -> Path:
    """A file that another process, with another head, has not written to its end."""
    own = prefix_folder() / "0123456789abcdef"
    (own / "ab").mkdir(parents=True)
    partial = own / "ab" / ".0123.partial.safetensors"
    partial.write_bytes(b"half")
    os.utime(partial, ns=(0, 0))
    return partial


def test_what_another_process_is_writing_is_left_alone(keeping: Engine, written: Path) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ask(keeping, draw(20, 120))
    files = files_of(keeping)
    files._max_bytes = files.nbytes
    ask(keeping, draw(21, 120))
    assert files.n_evicted > 0
    assert written.exists()
    other = PrefixFiles(prefix_folder(), {"target": "other"}, 1 << 30)
    os.rename(other._own / LOCK, written.parents[1] / LOCK)  # it is that one's folder
    clear_folder(prefix_folder())
    assert whole_files(prefix_folder()) == []
    assert written.exists()
    assert is_written(prefix_folder())
    close_files(keeping)
    assert other._lock is not None
    other._lock.close()
    assert not is_written(prefix_folder())
    assert clear_folder(prefix_folder()) == 4
    assert not written.exists()


def test_files_that_another_process_removed_are_no_damage_and_are_written_again(
    keeping: Engine,
) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    ids = draw(20, 120)
    ask(keeping, ids)
    files = files_of(keeping)
    clear_folder(prefix_folder())
    assert files.longest(ids) == 0
    assert ask(keeping, ids).stats.cached_tokens == 0
    assert (files.longest(ids), files.n_damaged) == (7 * BLOCK, 0)


def test_a_process_that_only_reads_clears_what_was_written_since(keeping: Engine) -> None:
    keeping.keep_prefixes(0, 1 << 30)
    reader = PrefixFiles(prefix_folder(), keeping.identity, 1 << 30)
    assert not reader.writes
    ask(keeping, draw(20, 120))
    reader.clear()
    assert files_of(keeping).nbytes == 0

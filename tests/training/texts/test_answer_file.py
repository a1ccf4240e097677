"""A file of answers keeps every whole line, and counts what it holds."""

import errno
import json
import os
from pathlib import Path

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts.answer_file import (
    Answer,
    Answered,
    AnswerFile,
    ends_in_loop,
    read_answers,
    tally,
)

QUESTION, REPLY = {"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "é"}
ONE = Answered(1, [QUESTION, REPLY], [Answer([5, 2], is_cut=False)], None)
TWO = Answered(0, [QUESTION, REPLY], [Answer([7] * 40, is_cut=True)], "no room")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with AnswerFile(tmp_path / "a.jsonl", {"seed": 1}, ["x", "y"]) as file:
        file.append(ONE)
        file.append(TWO)
    return tmp_path / "a.jsonl"


def test_what_was_appended_is_read_in_the_order_of_the_input(path: Path) -> None:
    assert read_answers(path) == [TWO, ONE]
    assert AnswerFile(path, {"seed": 1}, ["x", "y"]).finished == {0, 1}


def test_tools_that_were_offered_are_kept(path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    with AnswerFile(path, {"seed": 1}, ["x", "y"]) as file:
        file.append(ONE._replace(tools=(tool,)))
    assert read_answers(path) == [TWO, ONE._replace(tools=(tool,))]


def test_other_programs_find_messages_in_every_line(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["messages"] for line in lines] == [[QUESTION, REPLY]] * 2
    assert lines[0]["tokens"] == [[5, 2]] and lines[1]["finish"] == ["length"]
    assert lines[0]["input"] == "y" and "left_out" not in lines[0]


def test_counts_tell_answers_that_were_cut_and_loops_apart(path: Path) -> None:
    total = tally(read_answers(path))
    assert (total.conversations, total.answers, total.tokens) == (2, 2, 42)
    assert (total.cut, total.looping) == (1, 1)
    assert (total.shortened, total.left_out) == ({"no room": 1}, {})
    none = tally([ONE, TWO, TWO._replace(answers=[])])
    assert (none.shortened, none.left_out) == ({"no room": 1}, {"no room": 1})


def test_a_loop_is_four_times_the_same_over_32_tokens() -> None:
    assert ends_in_loop([1, *[7] * 32]) and not ends_in_loop([7] * 31)
    assert ends_in_loop([9, *list(range(10)) * 4]) and not ends_in_loop(list(range(10)) * 3)
    assert not ends_in_loop([*list(range(10)) * 4, 77])
    assert ends_in_loop(list(range(64)) * 4) and not ends_in_loop(list(range(65)) * 8)


def test_a_line_of_something_else_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"index": 2}\n')
    with pytest.raises(EagleError, match=r"a.jsonl, line 3: not a line of answers"):
        read_answers(path)


def test_a_full_disk_loses_nothing_that_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes part of a line, then nothing more."""
    written, plain = list[int](), os.write

    def write(descriptor: int, line: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(plain(descriptor, line[:9]))
        return written[0]

    monkeypatch.setattr(os, "write", write)
    with (
        pytest.raises(EagleError, match=r"a.jsonl: No space left on device; the answers before"),
        AnswerFile(path, {"seed": 1}, ["x", "y"]) as file,
    ):
        file.append(ONE)
    monkeypatch.undo()
    assert read_answers(path) == [TWO, ONE]
    with AnswerFile(path, {"seed": 1}, ["x", "y"]) as file:
        file.append(ONE._replace(place=0))
    assert read_answers(path)[0].answers == ONE.answers

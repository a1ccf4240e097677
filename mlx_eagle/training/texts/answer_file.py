"""Answers of the target on disk: a line per conversation, appended as they are finished.

Every line is a conversation as other programs read it ("messages" in OpenAI's format), with what
training needs besides. A file beside it says what the answers depend on, so that a run that was
ended goes on only with the same target and options. Lines that answer other conversations stay, so
that nothing is answered twice when the data change. A line that was cut off when a run was killed
is dropped.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.quoting import quote_value
from mlx_eagle.session.prompt import Message

LONGEST_PERIOD = 64  # tokens that are looked for again and again at the end of an answer
LOOP_TOKENS, LOOP_TURNS = 32, 4  # a loop has at least so many tokens, and comes so many times


class Answer(NamedTuple):
    """What the target wrote after one question.

    Attributes:
        tokens: as it wrote them; the last one ends the answer unless it was cut.
        is_cut: whether the limit ended it, and not the target.
    """

    tokens: list[int]
    is_cut: bool


class Answered(NamedTuple):
    """A conversation that is finished.

    Attributes:
        place: of the input, from 0 on.
        messages: in OpenAI's format; the answers in them are the target's.
        answers: of the target, in order.
        left_out: why there are fewer answers than questions, or none; None if nothing is missing.
        tools: that the answers may call, as JSON schemas.
    """

    place: int
    messages: list[Message]
    answers: list[Answer]
    left_out: str | None
    tools: tuple[Message, ...] = ()


class Tally(NamedTuple):
    """What a file of answers holds.

    Attributes:
        conversations: with at least one answer.
        answers: in all of them.
        tokens: of these answers.
        cut: answers that the limit ended.
        looping: of those, answers that ended in a loop (`ends_in_loop`).
        left_out: conversations without any answer, by the reason.
        shortened: conversations with fewer answers than questions, by the reason.
    """

    conversations: int
    answers: int
    tokens: int
    cut: int
    looping: int
    left_out: dict[str, int]
    shortened: dict[str, int]


class AnswerFile:
    """A file that answers are appended to; use it as a context manager.

    Args:
        path: of the file; its folder must exist.
        origin: what the answers depend on, by name, as JSON can hold it.
        digests: of every conversation of the input.
        by_place: whether answers depend on the place of their conversation, as drawn ones do.

    Attributes:
        finished: places of conversations that need no answer any more.

    Raises:
        EagleError: if there is a file already that depends on something else, or is no such file.
    """

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, Any],
        digests: list[str],
        *,
        by_place: bool = False,
    ) -> None:
        self._path, self._digests = path, digests
        if path.exists():
            _check_origin(path, origin)
            there = read_answers(path, digests, by_place=by_place)
            self.finished = {answered.place for answered in there}
        else:
            _write_origin(path, origin)
            self.finished = set[int]()
        self._stream: BinaryIO | None = None

    def __enter__(self) -> "AnswerFile":
        try:
            self._stream = self._path.open("ab")
            self._stream.truncate(len(_whole_lines(self._path)))
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stream is not None, "it was opened"
        self._stream.close()

    def append(self, answered: Answered) -> None:
        """Write a conversation, so that it is there whatever happens to the process afterwards.

        Raises:
            EagleError: if the disk is full, for instance; what was written before stays.
        """
        assert self._stream is not None, "it was opened"
        fields: dict[str, Any] = {
            "index": answered.place,
            "input": self._digests[answered.place],
            "messages": answered.messages,
            "tokens": [answer.tokens for answer in answered.answers],
            "finish": ["length" if answer.is_cut else "stop" for answer in answered.answers],
        }
        if answered.left_out is not None:
            fields["left_out"] = answered.left_out
        if answered.tools:
            fields["tools"] = answered.tools
        line = json.dumps(fields).encode() + b"\n"
        try:
            # Not through a buffer, which would try once more to fill a full disk when it closes.
            while line:
                line = line[os.write(self._stream.fileno(), line) :]
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self.finished.add(answered.place)


def read_answers(
    path: Path, digests: Sequence[str] | None = None, *, by_place: bool = False
) -> list[Answered]:
    """Return the conversations of a file in the order of the input; a torn last line is none.

    Args:
        path: of the file.
        digests: of every conversation of the input, whose places they are given; None for
            whatever the file holds.
        by_place: as `AnswerFile` has it: a line counts only where its conversation still stands at
            the same place.

    Raises:
        EagleError: if a line is not one that was written here.
    """
    if digests is None:
        by_both = {(answered.place, digest): answered for digest, answered in _lines(path)}
        return [by_both[key] for key in sorted(by_both)]
    found = {(a.place if by_place else 0, digest): a for digest, a in _lines(path)}
    keys = [(place if by_place else 0, digest) for place, digest in enumerate(digests)]
    return [found[key]._replace(place=n) for n, key in enumerate(keys) if key in found]


def tally(answered: Iterable[Answered]) -> Tally:
    """Count what conversations hold."""
    kept = list(answered)
    answers = [answer for one in kept for answer in one.answers]
    cut = [answer for answer in answers if answer.is_cut]
    ended = [one for one in kept if one.left_out is not None]
    return Tally(
        conversations=sum(bool(one.answers) for one in kept),
        answers=len(answers),
        tokens=sum(len(answer.tokens) for answer in answers),
        cut=len(cut),
        looping=sum(ends_in_loop(answer.tokens) for answer in cut),
        left_out=dict(Counter(str(one.left_out) for one in ended if not one.answers)),
        shortened=dict(Counter(str(one.left_out) for one in ended if one.answers)),
    )


def ends_in_loop(tokens: list[int]) -> bool:
    """Say whether tokens end in a loop.

    The last ones repeat with a period of at most 64 tokens, at least four times and over at least
    32 tokens.
    """
    for period in range(1, LONGEST_PERIOD + 1):
        n = max(LOOP_TOKENS, LOOP_TURNS * period)
        if len(tokens) >= n and tokens[-n:-period] == tokens[period - n :]:
            return True
    return False


def origin_path(path: Path) -> Path:
    """Return the file beside a file of answers that says what they depend on."""
    return path.with_name(f"{path.name}.origin.json")


def _lines(path: Path) -> Iterator[tuple[str, Answered]]:
    """Yield what the whole lines of a file say: the digest of the input, and what came of it."""
    for number, line in enumerate(_whole_lines(path).splitlines(), 1):
        try:
            yield _parse(line)
        except (ValueError, LookupError, TypeError) as error:
            raise EagleError(
                f"{path}, line {number}: not a line of answers of a target; remove the line, and "
                "that conversation is answered again"
            ) from error


def _parse(line: bytes) -> tuple[str, Answered]:
    """Return what a line says: the digest of the input, and what came of it."""
    fields = json.loads(line)
    tokens, finish = fields["tokens"], fields["finish"]
    answers = [
        Answer(list(map(int, t)), f == "length") for t, f in zip(tokens, finish, strict=True)
    ]
    tools = tuple(fields.get("tools", ()))
    left_out = fields.get("left_out")
    place, digest = int(fields["index"]), str(fields["input"])
    return digest, Answered(place, fields["messages"], answers, left_out, tools)


def _whole_lines(path: Path) -> bytes:
    """Return a file up to the end of its last whole line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EagleError(f"{path}: {error.strerror or error}") from error
    return content[: content.rfind(b"\n") + 1]


def _check_origin(path: Path, origin: Mapping[str, Any]) -> None:
    """Refuse to go on with a file whose answers depend on something else."""
    beside = origin_path(path)
    try:
        before = json.loads(beside.read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise EagleError(
            f"{path} exists, but {beside.name} beside it does not say what its answers depend on; "
            "remove it, or give another --out"
        )
    others = [name for name in origin if before.get(name) != origin[name]]
    if others:
        now, then = ([quote_value(of.get(n)) for n in others] for of in (origin, before))
        differences = ", ".join(
            f"{name} {was} and not {is_now}"
            for name, was, is_now in zip(others, then, now, strict=True)
        )
        raise EagleError(
            f"{path} was begun with {differences}; give the same again, remove the file, or give "
            "another --out"
        )


def _write_origin(path: Path, origin: Mapping[str, Any]) -> None:
    """Say what the answers of a new file depend on."""
    try:
        with new_file(origin_path(path)) as partial:
            partial.write_text(json.dumps(dict(origin), indent=2) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EagleError:
    """Return what is said where answers cannot be written."""
    return EagleError(
        f"cannot write {path}: {error.strerror or error}; the answers before are kept, the same "
        "command goes on from them"
    )

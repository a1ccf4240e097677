"""Training data as it is read from files: conversations, questions without answers, plain text.

Files are read line by line, so one may be larger than memory. What cannot be used is named with its
file and line, as an error or in a list: data that is left out unnoticed changes what a head learns.
"""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.json_files import MAX_CONFIG_BYTES, parse_json
from mlx_eagle.files.quoting import one_line, quote
from mlx_eagle.session.prompt import Message
from mlx_eagle.training.texts.message_formats import KEYS, read_record

JSON_LINES = (".jsonl", ".ndjson", ".json")
PLAIN = (".txt", ".md")
MAX_LINE_BYTES = MAX_CONFIG_BYTES
DOCUMENT = 4000  # characters after which a blank line ends a document of a plain text
LONGEST_DOCUMENT = 2 * DOCUMENT  # and after which any line does
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Conversation(NamedTuple):
    """One text to train on.

    Attributes:
        messages: in OpenAI's format; () for a plain text.
        text: a plain text; "" for messages.
        tools: that the answers may call, as JSON schemas.
        where: file and line, for messages about it.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Message, ...] = ()
    where: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether something that was said is answered in it, the last question perhaps not.

        What an assistant says before anybody else has spoken answers nothing.
        """
        return any(m["role"] == "assistant" for m in self.messages[self.n_opening :])

    @property
    def n_opening(self) -> int:
        """How many messages of an assistant stand before all others."""
        answers = (message["role"] == "assistant" for message in self.messages)
        return sum(takewhile(bool, answers))


def read_conversations(
    files: Sequence[Path], unusable: list[str] | None = None
) -> Iterator[Conversation]:
    """Yield what some files hold, one after the other.

    A line of JSON Lines is `{"messages": [{"role", "content"}, ...]}` (OpenAI),
    `{"conversations": [{"from", "value"}, ...]}` (ShareGPT), `{"prompt"}`, or `{"text"}`. Beside a
    question without an answer it may stand as "completion", "response", "answer", "output" or
    "chosen", and a system prompt as "system". A file of plain text is cut into documents at blank
    lines.

    Args:
        files: to read.
        unusable: is given why lines of JSON are left out that cannot be used; None: the first of
            them is an error.

    Raises:
        EagleError: if a file cannot be read, is of another kind, or holds nothing that can be used.
            The message names the file, and the line.
    """
    for file in files:
        is_plain = file.suffix.lower() in PLAIN
        if not is_plain and file.suffix.lower() not in JSON_LINES:
            raise EagleError(
                f"{file} is not in a format that is read here: expected "
                f"{', '.join((*JSON_LINES, *PLAIN))}, found {file.suffix or 'no ending'}"
            )
        n_found, n_unusable = 0, len(unusable or ())
        for conversation in _documents(file) if is_plain else _records(file, unusable):
            n_found += 1
            yield conversation
        if not n_found and unusable is not None and len(unusable) > n_unusable:
            raise EagleError(unusable[n_unusable])
        if not n_found:
            expected = "text" if is_plain else f"an object a line with {', '.join(KEYS)}"
            raise EagleError(f"{file} holds no conversation: it is empty; expected {expected}")


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield where a line stands ("file:line") and its bytes, with their end."""
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise EagleError(
                        f"{file}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; "
                        "cut it into several"
                    )
                yield f"{file}:{number}", line.removeprefix(_BYTE_ORDER_MARK * (number == 1))
    except OSError as error:
        raise EagleError(f"{file} cannot be read: {error.strerror or error}") from error


def _records(file: Path, unusable: list[str] | None) -> Iterator[Conversation]:
    """Yield the conversations of JSON Lines; blank lines are passed over."""
    for where, line in _lines(file):
        if not line.strip():
            continue
        if where.endswith(":1") and line.lstrip().startswith(b"["):
            raise EagleError(
                f"{where}: a list in JSON; expected one object a line "
                "(jq -c '.[]' FILE > FILE.jsonl makes them)"
            )
        try:
            record = read_record(_parsed(line, where), where)
        except EagleError as error:
            if unusable is None:
                raise
            unusable.append(str(error))
            continue
        yield Conversation(record.messages, record.text, record.tools, where)


def _parsed(line: bytes, where: str) -> object:
    """Return what a line says in JSON."""
    try:
        return parse_json(line)
    except UnicodeError as error:
        raise EagleError(f"{where}: not UTF-8 text: {one_line(error)}") from error
    except (ValueError, RecursionError, CheckpointError) as error:
        raise EagleError(
            f"{where}: {quote(line[:40].decode(errors='replace'))} .. is not readable JSON: "
            f"{one_line(error)}; write one object a line"
        ) from error


def _documents(file: Path) -> Iterator[Conversation]:
    """Yield the documents of a plain text: paragraphs that follow each other, joined.

    So a book is more than one text, some of which can be held out.
    """
    parts, n_characters, begin = list[str](), 0, ""
    for where, line in _lines(file):
        try:
            text = line.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise EagleError(f"{where}: not UTF-8 text: {error.reason}") from error
        if not parts and not text.strip():
            continue
        begin = begin if parts else where
        parts.append(text)
        n_characters += len(text)
        may_end = n_characters >= (LONGEST_DOCUMENT if text.strip() else DOCUMENT)
        if may_end:
            yield Conversation(text="".join(parts).strip("\n"), where=begin)
            parts, n_characters = [], 0
    if parts:
        yield Conversation(text="".join(parts).strip("\n"), where=begin)

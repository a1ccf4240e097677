"""The arguments of calls while they are written, for models that write calls as JSON.

Once name and the beginning of the arguments are there, the characters of the argument object are
passed on as they come, up to the brace that closes it; another call may follow it. Calls that are
written otherwise never begin here: they are read as a whole.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from mlx_eagle.answers.tool_calls import tool_name
from mlx_eagle.server.events import CallEnd, CallPart, CallStart, Event

HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
JOINT = re.compile(r"\s*[;,]?\s*")  # between two calls
LONGEST_HEAD = 1000  # characters


class CallStream:
    """Sends the calls of one part of an answer as they are written.

    Args:
        tools: that may be called.
        index: of the first of them in its answer.
        new_id: returns the name of a call.

    Attributes:
        n_begun: calls of which something was sent; the last one is not ended here.
        arguments: of the last one, as far as they were sent.
        rest: what was written after them and begins no call.
    """

    def __init__(self, tools: Sequence[Any], index: int, new_id: Callable[[], str]) -> None:
        self._names = {tool_name(tool) for tool in tools}
        self._index, self._new_id = index, new_id
        self._is_other = False  # written in another way
        self._brackets = _Brackets(0)
        self.n_begun = 0
        self.arguments = self.rest = ""

    def add(self, text: str) -> Iterator[Event]:
        """Take in some text and send what of it are arguments."""
        while text:
            brackets = self._brackets
            if brackets.depth == 0:
                self.rest += text
                text = yield from self._begin()
            elif not brackets.has_closed:
                part = text[: brackets.read(text)]
                self.arguments, text = self.arguments + part, text[len(part) :]
                yield CallPart(self._index + self.n_begun - 1, part)
            else:  # other fields, up to the bracket that closes the call
                text = text[brackets.read(text) :]

    def finish(self) -> Iterator[Event]:
        """Send nothing more: the brackets say where arguments end."""
        return iter(())

    def _begin(self) -> Generator[Event, None, str]:
        """Begin a call if the rest does; returns what follows its head."""
        after = JOINT.match(self.rest) if self.n_begun else None
        found = None if self._is_other else HEAD.match(self.rest, after.end() if after else 0)
        name = _loaded(found[1]) if found else None
        if found is None or name not in self._names or name is None:
            self._is_other |= found is not None or len(self.rest) > LONGEST_HEAD
            return ""
        if self.n_begun:
            yield CallEnd(self._index + self.n_begun - 1)
        text, self.rest, self.arguments = self.rest[found.end() :], "", ""
        self.n_begun, self._brackets = self.n_begun + 1, _Brackets(1)
        yield CallStart(self._index + self.n_begun - 1, self._new_id(), name)
        return text


class _Brackets:
    """Finds where the arguments of a call end, and the call.

    Attributes:
        depth: of what is open; the call is the first.
        has_closed: whether its arguments have ended.
    """

    def __init__(self, depth: int) -> None:
        self.depth, self.has_closed = depth, False
        self._in_string = self._is_escaped = False

    def read(self, text: str) -> int:
        """Take in a text up to the end of the arguments, then of the call; returns how much."""
        for place, char in enumerate(text):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = not self._is_escaped and char == "\\"
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth == (0 if self.has_closed else 1):
                    self.has_closed = True
                    return place + 1
        return len(text)


def _loaded(text: str) -> str | None:
    """Return a string of JSON; None if it is none."""
    try:
        return str(json.loads(text))
    except ValueError:
        return None

"""The arguments of a call while they are written, for models that write calls as JSON.

Once name and the beginning of the arguments are there, the characters of the argument object are
passed on as they come, up to the brace that closes it. Calls that are written otherwise never
begin here: they are read as a whole.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlx_eagle.answers.tool_calls import tool_name
from mlx_eagle.server.events import CallPart, CallStart, Event

HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
LONGEST_HEAD = 1000  # characters


class CallStream:
    """Sends one call as it is written.

    Args:
        tools: that may be called.
        index: of the call in its answer.
        new_id: returns its name.

    Attributes:
        has_begun: whether anything of it was sent.
        is_complete: whether all of its arguments were.
    """

    def __init__(self, tools: Sequence[Any], index: int, new_id: Callable[[], str]) -> None:
        self._names = {tool_name(tool) for tool in tools}
        self._index, self._new_id = index, new_id
        self._head = ""
        self._is_other = False  # written in another way
        self._depth, self._in_string, self._is_escaped = 0, False, False
        self.has_begun = self.is_complete = False

    def add(self, text: str) -> Iterator[Event]:
        """Take in some text and send what of it are arguments."""
        if self._is_other or self.is_complete:
            return
        if not self.has_begun:
            self._head += text
            found = HEAD.match(self._head)
            if found is None:
                self._is_other = len(self._head) > LONGEST_HEAD
                return
            name = _loaded(found[1])
            if name is None or name not in self._names:
                self._is_other = True
                return
            self.has_begun, text = True, self._head[found.end() :]
            yield CallStart(self._index, self._new_id(), name)
        if part := text[: self._length(text)]:
            yield CallPart(self._index, part)

    def _length(self, text: str) -> int:
        """Return how much of a text belongs to the argument object."""
        for place, char in enumerate(text):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = not self._is_escaped and char == "\\"
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return place + 1
        return len(text)


def _loaded(text: str) -> str | None:
    """Return a string of JSON; None if it is none."""
    try:
        return str(json.loads(text))
    except ValueError:
        return None

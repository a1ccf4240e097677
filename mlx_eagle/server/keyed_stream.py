"""The arguments of a call while they are written, for models that write them key after key.

What stands between keys and values is known of a model whose calls a grammar forces, so a text is
passed on as it comes, as JSON; what is no text, once it is whole.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlx_eagle.answers.call_layout import CallLayout
from mlx_eagle.answers.sections import longest_overlap
from mlx_eagle.answers.tool_calls import tool_name
from mlx_eagle.sampling.call_grammar import is_bare_text, value_as_json
from mlx_eagle.server.events import CallPart, CallStart, Event

NULL = "null"  # how a text that may be null is written then, in any case


class KeyedStream:
    """Sends the call of one part of an answer as it is written.

    Args:
        tools: that the grammar forces, name and arguments; no two of one name.
        layout: of the model's calls.
        index: of the call in its answer.
        new_id: returns its name.

    Attributes:
        n_begun: 1 once something was sent, which is not ended here.
        arguments: as far as they were sent: JSON.
        rest: nothing; a part has one call.
    """

    rest = ""

    def __init__(
        self, tools: Sequence[Any], layout: CallLayout, index: int, new_id: Callable[[], str]
    ) -> None:
        functions = [tool.get("function", tool) for tool in tools]
        self._schemas = {str(tool_name(f)): f.get("parameters") or {} for f in functions}
        self._layout, self._index, self._new_id = layout, index, new_id
        self._name: str | None = None
        self._key: str | None = None  # of the value that is being written
        self._is_open = False  # a text of which something was sent
        self._held = ""
        self.n_begun = 0
        self.arguments = ""

    def add(self, text: str) -> Iterator[Event]:
        """Take in some text and send what of it are arguments."""
        self._held += text
        n_before = -1
        while n_before != len(self._held):
            n_before = len(self._held)
            if self._key is None:
                yield from self._head()
            else:
                yield from self._value(self._key)

    def finish(self) -> Iterator[Event]:
        """Send what closes the arguments, if they have ended as the layout has it."""
        if self._key is None and self.n_begun and self._held == self._layout.end:
            yield from self._send("}")

    def _head(self) -> Iterator[Event]:
        """Read what stands before a value: a key, and before the first one the name."""
        layout = self._layout
        names = [self._name] if self._name is not None else list(self._schemas)
        for name in names:
            before = layout.between if self.n_begun else layout.before + name + layout.first
            if not self._held.startswith(before):
                continue
            for key in self._properties(name):
                head = before + key + layout.middle
                if self._held.startswith(head):
                    self._name, self._key, self._held = name, key, self._held[len(head) :]
                    yield from self._begin(name, key)
                    return

    def _begin(self, name: str, key: str) -> Iterator[Event]:
        """Send a key, and the name before the first one."""
        opening = ", " if self.n_begun else "{"
        if not self.n_begun:
            self.n_begun = 1
            yield CallStart(self._index, self._new_id(), name)
        yield from self._send(f"{opening}{_written(key)}: ")

    def _value(self, key: str) -> Iterator[Event]:
        """Send what is certain of a value."""
        schema, tail = self._schemas[str(self._name)], self._layout.tail
        value, at = self._properties(str(self._name))[key], self._held.find(tail)
        while at >= 0:
            text = self._held[:at]
            try:
                whole = value_as_json(text, value, schema, self._layout)
            except ValueError:  # the tail stands within a text of it
                at = self._held.find(tail, at + 1)
                continue
            yield from self._send(_written(text)[1:] if self._is_open else whole)
            self._held, self._key, self._is_open = self._held[at + len(tail) :], None, False
            return
        if is_bare_text(value, schema):
            yield from self._piece()

    def _piece(self) -> Iterator[Event]:
        """Send what is certain of a text, but for one that may yet be null."""
        n = len(self._held) - longest_overlap(self._held, [self._layout.tail])
        if n > (0 if self._is_open else len(NULL)):
            part, self._held = self._held[:n], self._held[n:]
            yield from self._send(_written(part)[self._is_open : -1])
            self._is_open = True

    def _properties(self, name: str) -> Mapping[str, Any]:
        properties: Mapping[str, Any] = self._schemas[name].get("properties") or {}
        return properties

    def _send(self, text: str) -> Iterator[Event]:
        if text:
            self.arguments += text
            yield CallPart(self._index, text)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

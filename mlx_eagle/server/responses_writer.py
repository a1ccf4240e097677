"""Answers as OpenAI's `responses` sends them: items, each begun, filled and done.

Clients keep the item of `output_item.done`, and refuse a text whose item was not announced.
"""

from typing import Any

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.custom_tools import InputStream
from mlx_eagle.server.events import (
    CallEnd,
    CallPart,
    CallStart,
    End,
    Event,
    Failed,
    Said,
    Thought,
    Usage,
    Whole,
)
from mlx_eagle.server.ids import ServedModel, new_id
from mlx_eagle.server.refusal import WORDINGS
from mlx_eagle.server.tool_choice import CHOICES
from mlx_eagle.server.writer import sse

CUSTOM = "custom_tool_call"
Item = dict[str, Any]


class ResponsesWriter:
    """Writes one answer.

    Args:
        asked: what was asked for.
        model: that answers.
        now: the time, in seconds since 1970.
    """

    def __init__(self, asked: Asked, model: ServedModel, now: int) -> None:
        self._asked = asked
        self._response = _response(asked, model, now)
        self._sequence = 0
        self._items: list[Item] = []
        self._open: Item | None = None
        self._text = ""  # of the open item, as far as it was sent
        self._input = InputStream()  # of the open item, where that is a text for a tool

    def begin(self) -> bytes:
        """Return the announcement of the response."""
        return self._state("response.created") + self._state("response.in_progress")

    def beat(self, seconds: float, done: int, total: int) -> bytes:
        """Return an event that says nothing new: clients of this API do not count comments."""
        return self._state("response.in_progress")

    def write(self, event: Event) -> bytes:
        """Return the events of this API for one event."""
        match event:
            case Thought(text):
                lines = self._begin_text("reasoning", "rs_")
                return lines + self._part("response.reasoning_text.delta", text)
            case Said(text) if text:
                lines = self._begin_text("message", "msg_")
                return lines + self._part("response.output_text.delta", text, logprobs=[])
            case CallStart(_, call_id, name):
                return self._close() + self._add(self._call(call_id, name))
            case CallPart(_, text):
                return self._arguments(text)
            case CallEnd():
                return self._close(is_complete=True)
            case End():
                return self._end(event)
            case Failed(kind, message):
                wording = WORDINGS[kind]
                error = {"code": wording.code or wording.openai, "message": message}
                self._response |= {"status": "failed", "error": error}
                return self._state("response.failed")
        return b""

    def whole(self, answer: Whole) -> dict[str, Any]:
        """Return the body of an answer that is sent at once."""
        if answer.thought:
            self._items.append(_thought(new_id("rs_"), answer.thought))
        if answer.said or not answer.calls:
            self._items.append(_message(new_id("msg_"), answer.said))
        for call in answer.calls:
            self._add(self._call(call.id, call.name))
            self._arguments(call.arguments)
            self._close(is_complete=call.is_complete)
        self._conclude(answer.end)
        return self._response

    # Items

    def _begin_text(self, kind: str, start: str) -> bytes:
        """Open an item of text, unless one is open."""
        if self._open is not None and self._open["type"] == kind:
            return b""
        lines, item_id = self._close(), new_id(start)
        if kind == "reasoning":
            empty = _thought(item_id, "") | {"content": []}
            part: Item = {"type": "reasoning_text", "text": ""}
        else:
            empty = _message(item_id, "") | {"content": []}
            part = _output_text("")
        lines += self._add(empty | {"status": "in_progress"})
        return lines + self._of_item("response.content_part.added", content_index=0, part=part)

    def _add(self, item: Item) -> bytes:
        """Announce an item."""
        self._open, self._text, self._input = item, "", InputStream()
        index = len(self._items)
        return self._event("response.output_item.added", output_index=index, item=item)

    def _part(self, kind: str, text: str, **fields: Any) -> bytes:
        """Send a piece of the text of the open item."""
        self._text += text
        return self._of_item(kind, content_index=0, delta=text, **fields)

    def _close(self, *, is_complete: bool = False) -> bytes:
        """Send what ends the open item, if one is open.

        Args:
            is_complete: whether a call's arguments are; texts always are.
        """
        item, text = self._open, self._text
        if item is None:
            return b""
        status = "completed" if is_complete else "incomplete"
        if item["type"] == CUSTOM:
            lines = self._input_delta(self._input.finish(is_complete=is_complete))
            own: Item = {"input": self._input.text}
            lines += self._of_item("response.custom_tool_call_input.done", **own)
            done = item | own | {"status": status}
        elif item["type"] == "function_call":
            own = {"arguments": text, "name": item["name"]}
            lines = self._of_item("response.function_call_arguments.done", **own)
            done = item | {"arguments": text, "status": status}
        elif item["type"] == "reasoning":
            lines = self._text_done("response.reasoning_text.done")
            done = _thought(item["id"], text)
        else:
            lines = self._text_done("response.output_text.done", logprobs=[])
            done = _message(item["id"], text)
        if "content" in done:
            part = done["content"][0]
            lines += self._of_item("response.content_part.done", content_index=0, part=part)
        index = len(self._items)
        lines += self._event("response.output_item.done", output_index=index, item=done)
        self._items.append(done)
        self._open = None
        return lines

    def _text_done(self, kind: str, **fields: Any) -> bytes:
        return self._of_item(kind, content_index=0, text=self._text, **fields)

    def _call(self, call_id: str, name: str) -> Item:
        """Return a call that has begun, in the group that its tool was offered in."""
        space = self._asked.spaces.get(name)
        own = {"namespace": space} if space else {}
        if name in self._asked.custom:
            item = {"id": new_id("ctc_"), "type": CUSTOM, "call_id": call_id, "name": name}
            return item | own | {"input": "", "status": "in_progress"}
        item = {"id": new_id("fc_"), "type": "function_call", "call_id": call_id, "name": name}
        return item | own | {"arguments": "", "status": "in_progress"}

    def _arguments(self, part: str) -> bytes:
        """Send a piece of the arguments of the open call."""
        self._text += part
        if self._open is not None and self._open["type"] == CUSTOM:
            return self._input_delta(self._input.add(part))
        return self._of_item("response.function_call_arguments.delta", delta=part)

    def _input_delta(self, text: str) -> bytes:
        """Send a piece of the text that a tool is given."""
        return self._of_item("response.custom_tool_call_input.delta", delta=text) if text else b""

    # Events

    def _end(self, end: End) -> bytes:
        lines = self._close()
        self._conclude(end)
        return lines + self._state(f"response.{self._response['status']}")

    def _conclude(self, end: End) -> None:
        """Complete the response."""
        details = {"reason": "max_output_tokens"} if end.reason == "length" else None
        self._response |= {
            "status": "incomplete" if details else "completed",
            "incomplete_details": details,
            "output": self._items,
            "usage": usage(end.usage),
        }

    def _state(self, kind: str) -> bytes:
        return self._event(kind, response=self._response)

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        """Return an event of the open item."""
        assert self._open is not None, "an item is open"
        index = len(self._items)
        return self._event(kind, item_id=self._open["id"], output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._sequence = self._sequence, self._sequence + 1
        return sse({"type": kind, "sequence_number": number} | fields, kind)


def usage(counts: Usage) -> dict[str, Any]:
    """Return the counts of tokens, in the words of this API."""
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.thought},
        "total_tokens": counts.prompt + counts.completion,
    }


def _response(asked: Asked, model: ServedModel, now: int) -> dict[str, Any]:
    """Return a response that has begun."""
    options = asked.options
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now,
        "model": model.name,
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": asked.parallel,
        "tool_choice": _choice(asked),
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": options.get("temperature"),
        "top_p": options.get("top_p"),
        "max_output_tokens": options.get("max_tokens"),
        "usage": None,
    }


def _choice(asked: Asked) -> str | Item:
    """Return which tool may or must be called."""
    if asked.choice in CHOICES:
        return asked.choice
    kind = "custom" if asked.choice in asked.custom else "function"
    return {"type": kind, "name": asked.choice}


def _thought(item_id: str, text: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    own = {"id": item_id, "type": "reasoning", "summary": []}
    return own | {"content": content, "status": "completed"}


def _message(item_id: str, text: str) -> Item:
    own = {"id": item_id, "type": "message", "role": "assistant", "status": "completed"}
    return own | {"content": [_output_text(text)]}


def _output_text(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

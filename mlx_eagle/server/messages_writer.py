"""Answers as Anthropic's `messages` sends them: blocks, one after another.

A stream of this API must not be silent: clients give it up after minutes without an event, and
Claude Code counts pings for some minutes only. So it then gets pieces without text.
"""

import json
from typing import Any

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.events import (
    CallEnd,
    CallPart,
    CallStart,
    End,
    Event,
    Failed,
    Reading,
    Said,
    Thought,
    Usage,
    Whole,
)
from mlx_eagle.server.ids import ServedModel, new_id
from mlx_eagle.server.messages_body import SIGNATURE
from mlx_eagle.server.refusal import RefusalError, anthropic_error
from mlx_eagle.server.writer import sse

PATIENT = 60.0  # seconds for which pings will do
THINKER = "claude-cli/"  # begins the name of the client that wants more than pings
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
NOTHING = {  # a piece without text, by the type of the block
    "thinking": {"type": "thinking_delta", "thinking": ""},
    "text": {"type": "text_delta", "text": ""},
    "tool_use": {"type": "input_json_delta", "partial_json": ""},
}
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesWriter:
    """Writes one answer.

    Args:
        asked: what was asked for.
        model: that answers.
        now: the time, in seconds since 1970.
    """

    def __init__(self, asked: Asked, model: ServedModel, now: int) -> None:
        self._asked, self._model = asked, model
        self._id = new_id("msg_")
        self._usage = Usage()
        self._has_begun = False
        self._open = ""  # the type of the open block
        self._index = 0

    def begin(self) -> bytes:
        """Return nothing: the first event says how much was cached."""
        return b""

    def beat(self, seconds: float, done: int, total: int) -> bytes:
        """Return a ping, or for Claude Code after a while a piece of nothing.

        It belongs to the block that is open; where none is, to a thought.
        """
        lines = self._begin(Usage(prompt=total))
        if seconds < PATIENT or not self._asked.client.startswith(THINKER):
            return lines + self._event("ping")
        if not self._open:
            lines += self._block(THINKING)
        return lines + self._delta(dict(NOTHING[self._open]))

    def write(self, event: Event) -> bytes:
        """Return the events of this API for one event."""
        match event:
            case Reading(done, total):
                return self._begin(Usage(total, done))
            case Thought(text):
                lines = self._begin(self._usage) + self._block(THINKING)
                return lines + self._delta({"type": "thinking_delta", "thinking": text})
            case Said(text) if text:
                lines = self._begin(self._usage) + self._block({"type": "text", "text": ""})
                return lines + self._delta({"type": "text_delta", "text": text})
            case CallStart(_, call_id, name):
                call = {"type": "tool_use", "id": tool_id(call_id), "name": name, "input": {}}
                return self._begin(self._usage) + self._close() + self._block(call)
            case CallPart(_, text):
                return self._delta({"type": "input_json_delta", "partial_json": text})
            case CallEnd():
                return self._close()
            case End():
                return self._end(event)
            case Failed(kind, message):
                error = anthropic_error(RefusalError(kind, message), self._asked.request_id)
                return sse(error, "error")
        return b""

    def whole(self, answer: Whole) -> dict[str, Any]:
        """Return the body of an answer that is sent at once."""
        blocks: list[dict[str, Any]] = []
        if answer.thought:
            blocks.append(THINKING | {"thinking": answer.thought, "signature": SIGNATURE})
        if answer.said:
            blocks.append({"type": "text", "text": answer.said})
        blocks += [
            {"type": "tool_use", "id": tool_id(c.id), "name": c.name, "input": _loaded(c.arguments)}
            for c in answer.calls
            if c.is_complete
        ]
        reason = {"stop_reason": stop_reason(answer.end), "stop_sequence": answer.end.stop or None}
        return self._message(blocks) | reason | {"usage": usage(answer.end.usage)}

    def _message(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        own = {"id": self._id, "type": "message", "role": "assistant", "model": self._model.name}
        return own | {"content": blocks, "stop_reason": None, "stop_sequence": None}

    def _begin(self, counts: Usage) -> bytes:
        """Return the first events, once."""
        if self._has_begun:
            return b""
        self._has_begun, self._usage = True, counts
        message = self._message([]) | {"usage": usage(counts)}
        return self._event("message_start", message=message) + self._event("ping")

    def _block(self, block: dict[str, Any]) -> bytes:
        """Open a block, unless it is open."""
        if self._open == block["type"]:
            return b""
        closed = self._close()
        self._open = block["type"]
        return closed + self._event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        """Close the block that is open, if one is."""
        if not self._open:
            return b""
        lines = b""
        if self._open == "thinking":
            lines = self._delta({"type": "signature_delta", "signature": SIGNATURE})
        lines += self._event("content_block_stop", index=self._index)
        self._open, self._index = "", self._index + 1
        return lines

    def _end(self, end: End) -> bytes:
        lines = self._begin(end.usage) + self._close()
        delta = {"stop_reason": stop_reason(end), "stop_sequence": end.stop or None}
        lines += self._event("message_delta", delta=delta, usage=usage(end.usage))
        return lines + self._event("message_stop")

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind} | fields, kind)


def stop_reason(end: End) -> str:
    """Return why an answer ended, in Anthropic's words."""
    if end.stop:
        return "stop_sequence"
    if end.reason == "length" and end.is_full:
        return "model_context_window_exceeded"
    return REASONS.get(end.reason, "end_turn")


def usage(counts: Usage) -> dict[str, Any]:
    """Return the counts of tokens; what was cached is counted apart, not twice."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.completion,
    }


def tool_id(call_id: str) -> str:
    """Return a call's id as this API writes ours."""
    return call_id.replace("call_", "toolu_", 1) if call_id.startswith("call_") else call_id


def _loaded(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call."""
    try:
        loaded = json.loads(arguments)
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}

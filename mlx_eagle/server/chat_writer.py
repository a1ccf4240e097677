"""Answers as OpenAI's `chat/completions` sends them.

Clients join texts of a stream as they come, so the role, and the id and name of a call, are sent
once; a stream never ends without a finish reason or an error.
"""

from typing import Any

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.events import (
    CalledTool,
    CallPart,
    CallStart,
    Drafted,
    End,
    Event,
    Failed,
    Said,
    Thought,
    TokenLogprob,
    Usage,
    Whole,
)
from mlx_eagle.server.ids import ServedModel, new_id
from mlx_eagle.server.refusal import RefusalError, openai_error
from mlx_eagle.server.writer import comment, sse

DONE = b"data: [DONE]\n\n"


class ChatWriter:
    """Writes one answer.

    Args:
        asked: what was asked for.
        model: that answers.
        now: the time, in seconds since 1970.
    """

    def __init__(self, asked: Asked, model: ServedModel, now: int) -> None:
        self._asked = asked
        self._shared = {
            "id": new_id("chatcmpl-"),
            "created": now,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._has_begun = False

    def begin(self) -> bytes:
        """Return a comment, so that the headers are on their way."""
        return comment("accepted")

    def beat(self, seconds: float, done: int, total: int) -> bytes:
        """Return a comment that says how much of the prompt is read."""
        return comment(f"prefill {done}/{total}")

    def write(self, event: Event) -> bytes:
        """Return the chunks for one event."""
        match event:
            case Thought(text):
                return self._delta({"reasoning_content": text})
            case Said(text, logprobs):
                return self._delta({"content": text}, logprobs)
            case CallStart(index, call_id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                return self._delta({"tool_calls": [call]})
            case CallPart(index, text):
                return self._delta(
                    {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
                )
            case Drafted(text, from_draft, tree):
                return self._own({"text": text, "from_draft": from_draft, "tree": tree})
            case End():
                return self._end(event)
            case Failed(kind, message):
                return sse(openai_error(RefusalError(kind, message))) + DONE
        return b""

    def whole(self, answer: Whole) -> dict[str, Any]:
        """Return the body of an answer that is sent at once."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.said or None}
        if not answer.calls:
            message["content"] = answer.said
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.calls:
            message["tool_calls"] = [_call(call) for call in answer.calls]
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": finish_reason(answer.end),
            "logprobs": self._logprobs(tuple(answer.logprobs)),
        }
        body = {**self._shared, "object": "chat.completion", "choices": [choice]}
        return body | {"usage": usage(answer.end.usage), "timings": answer.end.figures}

    def _delta(self, delta: dict[str, Any], logprobs: tuple[TokenLogprob, ...] = ()) -> bytes:
        """Return a chunk, after the one that says whose words follow."""
        begin = b""
        if not self._has_begun:
            self._has_begun = True
            begin = self._chunk({"role": "assistant", "content": ""})
        return begin + self._chunk(delta, logprobs=self._logprobs(logprobs))

    def _end(self, end: End) -> bytes:
        """Return the last chunks."""
        begin = b"" if self._has_begun else self._delta({"content": ""})
        lines = begin + self._chunk({}, finish_reason(end))
        if self._asked.shows_drafts:
            lines += self._own({"stats": end.figures})
        if self._asked.with_usage:
            last = {"choices": [], "usage": usage(end.usage), "timings": end.figures}
            lines += sse({**self._shared, "object": "chat.completion.chunk"} | last)
        return lines + DONE

    def _chunk(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return sse({**self._shared, "object": "chat.completion.chunk", "choices": [choice]})

    def _own(self, fields: dict[str, Any]) -> bytes:
        """Return a chunk for who asked to see drafts."""
        chunk = {**self._shared, "object": "chat.completion.chunk", "choices": []}
        return sse(chunk | {"x_eagle": fields})

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        """Return log-probabilities as this API has them."""
        if self._asked.n_logprobs is None:
            return None
        return {"content": [logprob_entry(each) for each in logprobs], "refusal": None}


def finish_reason(end: End) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return "stop" if end.reason == "cancelled" else end.reason


def usage(counts: Usage) -> dict[str, Any]:
    """Return the counts of tokens, in OpenAI's words."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.thought},
    }


def logprob_entry(token: TokenLogprob) -> dict[str, Any]:
    """Return one token with its log-probability and the likeliest."""
    top = [_logprob(text, value) for text, value in token.top]
    return _logprob(token.text, token.logprob) | {"top_logprobs": top}


def _logprob(text: bytes, value: float) -> dict[str, Any]:
    shown = text.decode("utf-8", "replace")
    return {"token": shown, "bytes": list(text), "logprob": max(value, -9999.0)}


def _call(call: CalledTool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}

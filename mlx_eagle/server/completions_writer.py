"""Answers as OpenAI's older `completions` sends them."""

from typing import Any

from mlx_eagle.server.asked import Asked
from mlx_eagle.server.chat_writer import DONE, finish_reason, usage
from mlx_eagle.server.events import End, Event, Failed, Said, TokenLogprob, Whole
from mlx_eagle.server.ids import ServedModel, new_id
from mlx_eagle.server.refusal import RefusalError, openai_error
from mlx_eagle.server.writer import comment, sse


class CompletionsWriter:
    """Writes one answer.

    Args:
        asked: what was asked for.
        model: that answers.
        now: the time, in seconds since 1970.
    """

    def __init__(self, asked: Asked, model: ServedModel, now: int) -> None:
        self._asked = asked
        self._shared = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": now,
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._echo = asked.prompt if asked.echoes and isinstance(asked.prompt, str) else ""
        self._offset = len(self._echo)  # where in the text the next token begins

    def begin(self) -> bytes:
        """Return the prompt, if it was asked for."""
        return comment("accepted") + (self._chunk(self._echo) if self._echo else b"")

    def beat(self, seconds: float, done: int, total: int) -> bytes:
        """Return a comment that says how much of the prompt is read."""
        return comment(f"prefill {done}/{total}")

    def write(self, event: Event) -> bytes:
        """Return the chunks for one event."""
        match event:
            case Said(text, logprobs):
                return self._chunk(text, logprobs=self._logprobs(logprobs))
            case End():
                lines = self._chunk("", finish_reason(event))
                if self._asked.with_usage:
                    last = {"choices": [], "usage": usage(event.usage), "timings": event.figures}
                    lines += sse(self._shared | last)
                return lines + DONE
            case Failed(kind, message):
                return sse(openai_error(RefusalError(kind, message))) + DONE
        return b""

    def whole(self, answer: Whole) -> dict[str, Any]:
        """Return the body of an answer that is sent at once."""
        choice = {
            "index": 0,
            "text": self._echo + answer.said,
            "finish_reason": finish_reason(answer.end),
            "logprobs": self._logprobs(tuple(answer.logprobs)),
        }
        counts = {"usage": usage(answer.end.usage), "timings": answer.end.figures}
        return self._shared | {"choices": [choice]} | counts

    def _chunk(self, text: str, reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": logprobs}
        return sse(self._shared | {"choices": [choice]})

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        """Return log-probabilities as this API has them: lists side by side."""
        if self._asked.n_logprobs is None:
            return None
        texts = [_shown(token.text) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [{_shown(t): max(v, -9999.0) for t, v in k.top} for k in tokens],
            "text_offset": offsets,
        }


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")

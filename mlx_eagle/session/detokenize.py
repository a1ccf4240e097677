"""Tokens to text, as it streams: whole characters only, and nothing after a stop string.

The detokenizer is mlx-lm's; this adds the stop strings. Text that might be the beginning of a
stop string is held back until the next token decides.
"""

from collections.abc import Sequence
from typing import Any


class TextStream:
    """The text of one answer, token by token.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        stop: strings that end the answer; the text ends before the first of them.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._detokenizer.reset()
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take one token in and return the text that is now certain."""
        self._detokenizer.add_token(token)
        return self._release(self._detokenizer.last_segment)

    def finish(self) -> str:
        """Return what was held back, now that no token follows."""
        self._detokenizer.finalize()
        text = self._release(self._detokenizer.last_segment) + self._held
        self._held = ""
        return text

    def _release(self, segment: str) -> str:
        """Add a segment and return all but what may yet become a stop string."""
        if self.stopped:
            return ""
        text = self._held + segment
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

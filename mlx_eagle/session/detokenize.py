"""Tokens to text, as it streams: the pieces, joined, are what decoding all tokens at once gives.

What a token adds depends on the tokens around it: bytes of one character, a space that only the
first word lacks. So each piece is the difference of two decoded stretches that begin at the same
token, and it is held back while the next token could change it. Text that might be the beginning of
a stop string is held back as well.
"""

from collections.abc import Sequence
from typing import Any

from mlx_eagle.answers.sections import longest_overlap

REPLACEMENT = "\ufffd"  # what bytes that are no character yet become


class TextStream:
    """The text of one answer, token by token.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        stop: strings that end the answer; the text ends before the first of them.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Tokens up to `_read` have become text; decoding starts at `_start`, some tokens before.
        self._start = self._read = 0
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped_by = ""  # the stop string that ended the answer

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return bool(self.stopped_by)

    def add(self, token: int) -> str:
        """Take one token in and return the text that is now certain."""
        self._tokens.append(token)
        return self._release(self._new_text(is_last=False))

    def finish(self) -> str:
        """Return what was held back, now that no token follows."""
        text = self._release(self._new_text(is_last=True)) + self._held
        self._held = ""
        return text

    def _new_text(self, *, is_last: bool) -> str:
        """Return the text of the tokens that have not become text; "" while it could change."""
        if self._read == len(self._tokens):
            return ""
        text = self._decode(self._tokens[self._start :])
        if not is_last and (text.endswith(REPLACEMENT) or self._is_byte(self._tokens[-1])):
            return ""
        known = self._decode(self._tokens[self._start : self._read])
        self._start, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; nothing is tidied up in it."""
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _is_byte(self, token: int) -> bool:
        """Say whether a token is one byte (sentencepiece's byte fallback).

        Such bytes are read as a whole once their row has ended: it is either text or all wrong.
        """
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(piece, str) and len(piece) == 6 and piece.startswith("<0x")

    def _release(self, segment: str) -> str:
        """Add a segment and return all but what may yet become a stop string."""
        if self.stopped:
            return ""
        text = self._held + segment
        found = [(text.find(words), words) for words in self._stop if words in text]
        if found:
            at, self.stopped_by = min(found, key=lambda place: place[0])
            self._held = ""
            return text[:at]
        keep = longest_overlap(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

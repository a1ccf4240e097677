"""The parts of an answer while it comes: what is said, what is only thought, and calls of tools.

Models set them apart with marks in their text, some with a header before every part (OpenAI's
Harmony). A mark may come in several tokens, so text that may yet become one is held back until the
next token decides.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

LONGEST_HEADER = 300  # characters


class Kind(Enum):
    """What a part of an answer is."""

    SAID = "said"
    THOUGHT = "thought"
    TOOL = "tool"


class Place(Enum):
    """Where in its part some text stands."""

    START = "start"  # the mark that begins the part
    BODY = "body"
    END = "end"  # the mark that ends it


class Mark(NamedTuple):
    """What begins and ends a part; one without an end goes on to the end of the answer."""

    kind: Kind
    start: str
    end: str


class Span(NamedTuple):
    """Some text of one kind, all of it drafted or none of it."""

    text: str
    kind: Kind
    is_draft: bool
    place: Place = Place.BODY


class Sections(ABC):
    """Cuts an answer into spans as it comes; nothing of its text is lost."""

    def __init__(self) -> None:
        self._held: list[tuple[str, bool]] = []

    def begin(self, text: str) -> None:
        """Take in what stands before the answer and which it continues."""
        self.add(text, is_draft=False)
        self._held.clear()

    def add(self, text: str, is_draft: bool) -> list[Span]:
        """Take in the text of one token and return what is now certain."""
        self._held.append((text, is_draft))
        spans: list[Span] = []
        while self._cut("".join(part for part, _ in self._held), spans):
            pass
        return spans

    def finish(self) -> list[Span]:
        """Return what was held back, now that no token follows."""
        return self._release(sum(len(part) for part, _ in self._held), self._kind(), self._last())

    @abstractmethod
    def _cut(self, held: str, spans: list[Span]) -> bool:
        """Release what is certain of the held text; returns whether there may be more."""

    def _last(self) -> Place:
        """Return what text is that was held back until the end."""
        return Place.BODY

    @abstractmethod
    def _kind(self) -> Kind:
        """Return the kind of the part that is open."""

    def _release(self, n: int, kind: Kind, place: Place = Place.BODY) -> list[Span]:
        """Return the first n characters that were held back."""
        spans = []
        while n > 0:
            text, is_draft = self._held.pop(0)
            if len(text) > n:
                self._held.insert(0, (text[n:], is_draft))
            spans.append(Span(text[:n], kind, is_draft, place))
            n -= len(text)
        return [span for span in spans if span.text]


class MarkedSections(Sections):
    """Parts between marks; what is outside of them is said.

    Models think before they speak: the mark of a thought that follows words is one that they quote.

    Args:
        marks: of the model.
    """

    def __init__(self, marks: tuple[Mark, ...]) -> None:
        super().__init__()
        self._marks = marks
        self._open: Mark | None = None
        self._has_spoken = False  # since the start, or the last part that was set apart

    def _kind(self) -> Kind:
        return self._open.kind if self._open else Kind.SAID

    def _cut(self, held: str, spans: list[Span]) -> bool:
        wanted = [self._open.end] if self._open else [mark.start for mark in self._marks]
        at, words = _first(held, wanted)
        if not words:
            spans += self._text(held[: len(held) - longest_overlap(held, wanted)])
            return False
        spans += self._text(held[:at])
        if self._open is None:
            spans += self._begun(words)
        else:
            spans += self._release(len(words), self._kind(), Place.END)
            self._open, self._has_spoken = None, False
        return True

    def _text(self, text: str) -> list[Span]:
        """Release a stretch that holds no mark."""
        self._has_spoken |= self._open is None and bool(text.strip())
        return self._release(len(text), self._kind())

    def _begun(self, words: str) -> list[Span]:
        """Release a mark that begins a part, or one that is quoted."""
        mark = next(mark for mark in self._marks if mark.start == words)
        if mark.kind is Kind.THOUGHT and self._has_spoken:
            return self._text(words)
        self._open = mark
        return self._release(len(words), self._kind(), Place.START)


class ChannelSections(Sections):
    """Parts with a header that names a channel, and perhaps a tool that they go to.

    The format is OpenAI's Harmony (gpt-oss): `<|channel|>analysis<|message|>`, then a text that
    `<|end|>` ends. Text before which no header stands is said.
    """

    _BEGIN = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", " to=")
    _END = ("<|end|>", "<|return|>", "<|call|>")
    _BODY = "<|message|>"

    def __init__(self) -> None:
        super().__init__()
        self._open: Kind | None = None  # of the body that is being written; None: no header yet

    def _kind(self) -> Kind:
        return self._open or Kind.SAID

    def _last(self) -> Place:
        return Place.BODY if self._open else Place.START  # a header that was cut short

    def _cut(self, held: str, spans: list[Span]) -> bool:
        return self._header(held, spans) if self._open is None else self._body(held, spans)

    def _header(self, held: str, spans: list[Span]) -> bool:
        """Wait for the end of a header, if the held text can be one."""
        begins = [words for words in self._BEGIN if held[: len(words)] == words[: len(held)]]
        at = held.find(self._BODY)
        n_header = len(held) - len(self._BODY) if at < 0 else at
        if not begins or n_header > LONGEST_HEADER:  # what cannot be a header is text
            self._open = Kind.SAID
            spans += self._release(min(map(len, begins), default=0), Kind.SAID, Place.START)
            return True
        if at < 0:
            return False
        self._open = _kind_of_header(held[:at])
        spans += self._release(at + len(self._BODY), self._open, Place.START)
        return True

    def _body(self, held: str, spans: list[Span]) -> bool:
        """Release a body up to what ends it, or to the header of the next one."""
        wanted = (*self._END, "<|start|>", "<|channel|>")
        at, words = _first(held, wanted)
        if not words:
            spans += self._release(len(held) - longest_overlap(held, wanted), self._kind())
            return False
        spans += self._release(at, self._kind())
        if words in self._END:
            spans += self._release(len(words), self._kind(), Place.END)
        self._open = None
        return True


def _kind_of_header(header: str) -> Kind:
    """Return what a part with this header of a channel is."""
    if re.search(r"\bto=", header):
        return Kind.TOOL
    return Kind.THOUGHT if "<|channel|>analysis" in header else Kind.SAID


def _first(text: str, wanted: Sequence[str]) -> tuple[int, str]:
    """Return where the first of some words stands, and which, the longest of several; -1, ""."""
    found = [(text.find(words), words) for words in wanted if words and words in text]
    return min(found, key=lambda place: (place[0], -len(place[1])), default=(-1, ""))


def longest_overlap(text: str, wanted: Sequence[str]) -> int:
    """Return how many characters at the end of a text may become one of some words.

    Args:
        text: that may go on.
        wanted: words that do not stand in it as a whole.
    """
    return max((_overlap(text, words) for words in wanted), default=0)


def _overlap(text: str, words: str) -> int:
    """Return the length of the longest end of `text` that begins `words`."""
    longest = min(len(text), len(words) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(words[:n])), 0)

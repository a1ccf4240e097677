"""The parts of an answer: what is said, what is only thought, and calls of tools.

Models set them apart with marks in their text. A mark may come in several tokens, so text that may
yet become one is held back until the next token decides.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from jinja2 import TemplateError


class Kind(Enum):
    """What a part of an answer is."""

    SAID = "said"
    THOUGHT = "thought"
    TOOL = "tool"


class Mark(NamedTuple):
    """What begins and ends a part; one without an end goes on to the end of the answer."""

    kind: Kind
    start: str
    end: str


class Marks(NamedTuple):
    """What a model sets the parts of its answers apart with.

    `opening` is the mark that the prompt itself ends with, where it has the model think first.
    """

    marks: tuple[Mark, ...]
    opening: Mark | None = None


class Span(NamedTuple):
    """Some text of one kind, all of it drafted or none of it."""

    text: str
    kind: Kind
    is_draft: bool


# What models in use write, whatever their tokenizer says of itself.
COMMON = (
    Mark(Kind.THOUGHT, "<think>", "</think>"),
    Mark(Kind.THOUGHT, "<|channel|>analysis", "<|end|>"),
    Mark(Kind.TOOL, "<|channel|>commentary to=", "<|call|>"),
    Mark(Kind.TOOL, "<tool_call>", "</tool_call>"),
    Mark(Kind.TOOL, "<|tool_call|>", ""),
    Mark(Kind.TOOL, "<|python_tag|>", ""),
    Mark(Kind.TOOL, "[TOOL_CALLS]", ""),
)


def read_marks(tokenizer: Any) -> Marks:
    """Return the marks of a model.

    Args:
        tokenizer: mlx-lm's wrapper, which knows the marks of many models.
    """
    own = []
    if tokenizer.has_thinking:
        own.append(Mark(Kind.THOUGHT, tokenizer.think_start, tokenizer.think_end))
    if tokenizer.has_tool_calling:
        own.append(Mark(Kind.TOOL, tokenizer.tool_call_start, tokenizer.tool_call_end or ""))
    marks = tuple(dict.fromkeys([*own, *COMMON]))
    return Marks(marks, _opening(tokenizer, marks))


def _opening(tokenizer: Any, marks: Sequence[Mark]) -> Mark | None:
    """Return the mark that the chat template ends a prompt with, if it does."""
    if not tokenizer.has_chat_template:
        return None
    hello = [{"role": "user", "content": "hello"}]
    try:
        prompt = tokenizer.apply_chat_template(hello, add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError, LookupError, TypeError, AttributeError):
        return None  # the first question will say what is wrong
    end = str(prompt).rstrip()
    return next((m for m in marks if m.kind is Kind.THOUGHT and end.endswith(m.start)), None)


class Sections:
    """Cuts an answer into its parts as it comes; marks belong to the part that they delimit."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks.marks
        self._open = marks.opening
        self._held: list[tuple[str, bool]] = []

    def add(self, text: str, is_draft: bool) -> list[Span]:
        """Take in the text of one token and return what is now certain."""
        self._held.append((text, is_draft))
        spans: list[Span] = []
        while True:
            held = "".join(part for part, _ in self._held)
            wanted = [self._open.end] if self._open else [mark.start for mark in self._marks]
            found = [(held.find(words), words) for words in wanted if words and words in held]
            if not found:
                kept = max((_overlap(held, words) for words in wanted), default=0)
                return spans + self._release(len(held) - kept)
            at, words = min(found, key=lambda place: (place[0], -len(place[1])))
            if self._open is None:
                spans += self._release(at)
                self._open = next(mark for mark in self._marks if mark.start == words)
                spans += self._release(len(words))
            else:
                spans += self._release(at + len(words))
                self._open = None

    def finish(self) -> list[Span]:
        """Return what was held back, now that no token follows."""
        return self._release(sum(len(part) for part, _ in self._held))

    def _release(self, n: int) -> list[Span]:
        """Return the first n characters that were held back, as parts of the open kind."""
        kind = self._open.kind if self._open else Kind.SAID
        spans = []
        while n > 0:
            text, is_draft = self._held.pop(0)
            if len(text) > n:
                self._held.insert(0, (text[n:], is_draft))
            spans.append(Span(text[:n], kind, is_draft))
            n -= len(text)
        return [span for span in spans if span.text]


def _overlap(text: str, words: str) -> int:
    """Return the length of the longest end of `text` that begins `words`."""
    longest = min(len(text), len(words) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(words[:n])), 0)

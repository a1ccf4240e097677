"""How one model writes its answers, and the chat message that becomes of one.

A template wants thoughts and calls of tools apart from what was said: many drop the thoughts of
earlier turns, some refuse a conversation in which they stand as text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlx_eagle.answers.call_layout import CallLayout, read_layout
from mlx_eagle.answers.history import THOUGHTS, template_text
from mlx_eagle.answers.sections import (
    ChannelSections,
    Kind,
    Mark,
    MarkedSections,
    Place,
    Sections,
    Span,
)
from mlx_eagle.answers.tool_calls import (
    Call,
    as_messages,
    parse_calls,
    parse_channel,
    parse_json,
    parser_of_mark,
    writes_json,
)

CHANNELS = ("<|channel|>", "<|message|>")  # what a template of Harmony writes
LONGEST_END = 12  # tokens at the end of a prompt that can be a mark

# What models in use write, if their vocabulary or template has it, whatever mlx-lm knows of them.
THINKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<|python_tag|>", ""),
    ("[TOOL_CALLS]", ""),
)
COMMON = (
    *(Mark(Kind.THOUGHT, start, end) for start, end in THINKS),
    *(Mark(Kind.TOOL, start, end) for start, end in CALLS),
)


class Part(NamedTuple):
    """One part of an answer: the mark before it, its text, and the mark that ended it."""

    kind: Kind
    start: str = ""
    body: str = ""
    end: str = ""

    @property
    def raw(self) -> str:
        """The part as the model wrote it."""
        return self.start + self.body + self.end


class AnswerFormat(NamedTuple):
    """How a model writes its answers.

    Attributes:
        tokenizer: mlx-lm's wrapper.
        marks: what sets parts apart, where no channels do.
        has_channels: a header stands before every part (Harmony).
        call_layout: how calls are written that are no JSON, where that can be told.
    """

    tokenizer: Any
    marks: tuple[Mark, ...] = COMMON
    has_channels: bool = False
    call_layout: CallLayout | None = None

    def sections(self, begun: str = "") -> Sections:
        """Return what cuts an answer into its parts as it comes.

        Args:
            begun: what stands before the answer and which it continues; see `begun`.
        """
        cut = ChannelSections() if self.has_channels else MarkedSections(self.marks)
        if begun:
            cut.begin(f"<|channel|>final<|message|>{begun}" if self.has_channels else begun)
        return cut

    def begun(self, ids: Sequence[int], messages: Sequence[dict[str, Any]] = ()) -> str:
        """Return what the answer to a prompt continues.

        It is the text of an answer that the messages begin, or the mark with which the chat
        template has the model think first.

        Args:
            ids: of the prompt.
            messages: that it was made from, if it was.
        """
        if messages and messages[-1].get("role") == "assistant":
            return str(messages[-1].get("content") or "")
        end = str(self.tokenizer.decode(list(ids[-LONGEST_END:]))).rstrip()
        starts = [mark.start for mark in self.marks if mark.kind is Kind.THOUGHT]
        return next((start for start in starts if end.endswith(start)), "")

    def message(
        self, text: str, begun: str = "", tools: Sequence[Any] | None = None, salt: str = ""
    ) -> dict[str, Any]:
        """Return an answer as a chat message.

        Args:
            text: of the answer, as the model wrote it.
            begun: what it continues; not part of the message.
            tools: that the model was offered; calls that were not offered are text.
            salt: tells this answer from others, for the ids of its calls.

        Returns:
            "role" and "content"; "reasoning_content" where it thought, and "tool_calls" where it
            called tools (OpenAI's format, with arguments as a dict). A call that cannot be read
            is text.
        """
        sections = self.sections(begun)
        parts = _joined([*sections.add(text, is_draft=False), *sections.finish()])
        calls, said = list[Call](), list[str]()
        for part in parts:
            new = self.calls(part, tools) if part.kind is Kind.TOOL else []
            calls += new
            if not new and part.kind is not Kind.THOUGHT:
                said.append(part.body if self.has_channels else part.raw)
        content = ("\n\n" if self.has_channels else "").join(said)
        if not calls and self.writes_bare_calls:
            calls = parse_calls(content, parse_json, tools)
            content = "" if calls else content
        thoughts = [part.body.strip("\n") for part in parts if part.kind is Kind.THOUGHT]
        thought = "\n".join(filter(None, thoughts))
        is_alone = all(part.kind is Kind.SAID for part in parts)
        message = {"role": "assistant", "content": content if is_alone else content.strip("\n")}
        own = {THOUGHTS: thought} if thought else {}
        return message | own | ({"tool_calls": as_messages(calls, salt)} if calls else {})

    def calls(self, part: Part, tools: Sequence[Any] | None) -> list[Call]:
        """Return the calls of a part; none where it was cut short, or names no tool of these."""
        if self.has_channels:
            return parse_calls(part.body, parse_channel(part.start), tools)
        end = next((mark.end for mark in self.marks if mark.start == part.start), "")
        if end and not part.end:
            return []
        return parse_calls(part.body, parser_of_mark(part.start, self.tokenizer), tools)

    @property
    def writes_bare_calls(self) -> bool:
        """Whether a call may be the whole answer, in JSON, without a mark (Llama 3)."""
        return not self.has_channels and not self.tokenizer.has_tool_calling


def read_format(tokenizer: Any) -> AnswerFormat:
    """Return how a model writes its answers.

    Args:
        tokenizer: mlx-lm's wrapper, which knows the marks of many models.
    """
    text = template_text(tokenizer)
    own = []
    if tokenizer.has_thinking:
        own.append(Mark(Kind.THOUGHT, tokenizer.think_start, tokenizer.think_end))
    if tokenizer.has_tool_calling:
        own.append(Mark(Kind.TOOL, tokenizer.tool_call_start, tokenizer.tool_call_end or ""))
    vocabulary = tokenizer.get_vocab()

    def is_known(words: str) -> bool:
        return words in text or words in vocabulary

    # A mark of calls without an end that the model knows goes on to the end of the answer.
    common = [
        m._replace(end="") if m.kind is Kind.TOOL and not is_known(m.end) else m
        for m in COMMON
        if is_known(m.start)
    ]
    marks = tuple(dict.fromkeys([*own, *common]))
    own_call = next((m for m in own if m.kind is Kind.TOOL and m.end), None)
    layout = None
    if own_call is not None and not writes_json(own_call.start, tokenizer):
        layout = read_layout(tokenizer, own_call.start, own_call.end)
    return AnswerFormat(tokenizer, marks, all(word in text for word in CHANNELS), layout)


def _joined(spans: Sequence[Span]) -> list[Part]:
    """Return the parts that spans make up."""
    parts: list[Part] = []
    is_open = False
    for span in spans:
        if span.place is Place.START or not is_open or parts[-1].kind is not span.kind:
            parts.append(Part(span.kind))
        last = parts[-1]._asdict()
        parts[-1] = Part(**last | {span.place.value: last[span.place.value] + span.text})
        is_open = span.place is not Place.END
    return parts

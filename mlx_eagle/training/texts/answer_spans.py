"""Where in a rendered conversation the answers stand: what the model itself has to write.

Few chat templates mark answers, so they are found by rendering: the conversation up to an answer,
opened for it, is what the model is given; what follows in the conversation with the answer is what
it writes. Templates that rewrite earlier answers (Qwen3 drops their thoughts) are noticed so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_eagle.answers.answer_format import read_format
from mlx_eagle.answers.history import THOUGHT_KEYS
from mlx_eagle.answers.sections import Kind
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import one_line
from mlx_eagle.session.prompt import REFUSALS, Message, template_forms


class Span(NamedTuple):
    """Characters of a text, `stop` not included."""

    start: int
    stop: int


class Rendered(NamedTuple):
    """A conversation as the chat template writes it.

    Attributes:
        messages: in the form that the template takes.
        text: what it makes of them.
    """

    messages: list[Message]
    text: str


class AnswerSpans(NamedTuple):
    """Where the answers of a conversation stand, each with the mark that ends it.

    A mark that the template writes in its place, as Harmony's does after earlier answers, is not
    of the answer.

    Attributes:
        spans: in the order of the answers.
        is_last_only: the template rewrites earlier answers, so only the last is as it was written.
        has_end: a mark ends the last one; some templates write none.
    """

    spans: list[Span]
    is_last_only: bool
    has_end: bool


class ChatTemplate:
    """The chat template of a target, for whole conversations.

    Args:
        tokenizer: mlx-lm's wrapper, of a target that has a chat template.
        args: what the template is given besides the messages.
    """

    def __init__(self, tokenizer: Any, args: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._args = args
        marks = [mark for mark in read_format(tokenizer).marks if mark.kind is Kind.THOUGHT]
        starts = "|".join(re.escape(mark.start) for mark in marks) or "(?!)"
        ends = "|".join(re.escape(mark.end) for mark in marks if mark.end) or "(?!)"
        # A thought that is empty, or that the template has begun and that ends at once.
        self._no_thought = re.compile(rf"\s*(?:{starts})?\s*(?:{ends})\s*")
        self._begun_thought = re.compile(rf"(?:{starts})\s*(?:(?:{ends})\s*)?\Z")
        self._thought_ends = re.compile(ends)
        question: list[Message] = [{"role": "user", "content": "0"}]
        try:
            self._opens = self._text(question, (), opens=True) != self._text(question, ())
        except REFUSALS:
            self._opens = True

    def render(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> Rendered:
        """Return a conversation as text, in the first form that the template takes as a whole.

        A template that refuses system prompts is given them at the head of the first question.

        Raises:
            EagleError: if the template refuses the messages or leaves calls of tools out.
        """
        forms = template_forms(self._tokenizer, messages)
        if [m["role"] for m in messages[:2]] == ["system", "user"]:
            forms += [_without_system(form) for form in forms]
        reason = ""
        for form in forms:
            try:
                text = self._text(form, tools)
                has_calls = self._has_calls(form, tools, text)
            except REFUSALS as error:
                reason = reason or f"refuses the messages: {one_line(error)}"
                continue
            if has_calls:
                return Rendered(form, text)
            reason = reason or "leaves out the calls of tools"
        raise EagleError(f"the target's chat template {reason}")

    def answers(self, rendered: Rendered, tools: Sequence[Message] = ()) -> AnswerSpans:
        """Return where the answers stand.

        Args:
            rendered: a conversation that ends in an answer.
            tools: as they were rendered.

        Raises:
            EagleError: if the last answer cannot be told apart from what the template writes.
        """
        messages, text = rendered
        places = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        last = self._span(rendered, places[-1], tools) or self._said(rendered, places[-1], tools)
        if last is None:
            raise EagleError(
                "the target's chat template does not show where the last answer begins; "
                'give the conversation as plain text ({"text": ..}), or train on all tokens'
            )
        said = str(messages[places[-1]]["content"]).rstrip()
        has_end = not said or not text[: last.stop].endswith(said)
        spans = list[Span]()
        for place in places[:-1]:
            span = self._span(rendered, place, tools)
            if span is None:
                return AnswerSpans([last], True, has_end)
            spans.append(span)
        return AnswerSpans([*spans, last], False, has_end)

    def _text(
        self, messages: Sequence[Message], tools: Sequence[Message], *, opens: bool = False
    ) -> str:
        """Return what the template makes of messages, opened for an answer or not."""
        own = {"tools": list(tools)} if tools else {}
        options = {"add_generation_prompt": opens} | own | dict(self._args)
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))

    def _has_calls(self, form: Sequence[Message], tools: Sequence[Message], text: str) -> bool:
        """Say whether a rendered text shows every call of a tool.

        A name may also stand among the tools or in what is said, so the text has to be another
        one where any call names another tool.
        """
        return all(self._text(other, tools) != text for other in _with_another_call(form))

    def _span(self, rendered: Rendered, place: int, tools: Sequence[Message]) -> Span | None:
        """Return where an answer stands; None if the conversation does not have it as written."""
        messages, text = rendered
        message = messages[place]
        try:
            opened = self._text(messages[:place], tools, opens=True)
            is_last = place == len(messages) - 1
            after = text if is_last else self._text(messages[: place + 1], tools)
        except REFUSALS:
            return None
        if not self._opens and not self._has_thoughts(message) and not message.get("tool_calls"):
            span = self._said(Rendered(messages[: place + 1], after), place, tools)
            return span if span and text.startswith(after[: span.stop]) else None
        # A prompt may begin a thought that a conversation without thoughts does not have.
        for opening in (opened, self._begun_thought.sub("", opened)):
            if not after.startswith(opening):
                continue
            written = after[len(opening) :].rstrip()
            thought = None if self._has_thoughts(message) else self._no_thought.match(written)
            skipped = thought.end() if thought else 0
            # Harmony ends an earlier answer with another mark than the one the model wrote.
            for part in (written, _without_end(written, message)):
                if span := _place(text, opening, part, skipped):
                    return span
        return None

    def _said(self, rendered: Rendered, place: int, tools: Sequence[Message]) -> Span | None:
        """Return where the content of the last message begins, up to the end of its mark.

        It is where two renderings part that differ in the content alone.
        """
        messages, text = rendered
        before, message = messages[:place], messages[place]
        if not message["content"]:
            return None
        try:
            head = self._text(before, tools)
            both = [self._text([*before, message | {"content": c}], tools) for c in ("0", "1")]
        except REFUSALS:
            return None
        pairs = enumerate(zip(*both, strict=False))
        start = next((n for n, (a, b) in pairs if a != b), -1)
        if start < 0 or not text.startswith(both[0][:start]):
            return None
        if text.startswith(head) and not text[len(head) : start].strip():
            start = len(head)  # a space before the answer is written by the model
        return Span(start, len(text.rstrip()))

    def _has_thoughts(self, message: Message) -> bool:
        """Say whether an answer holds a thought, apart or in its text."""
        is_apart = any(message.get(key) for key in THOUGHT_KEYS)
        return is_apart or self._thought_ends.search(str(message["content"])) is not None


def _with_another_call(form: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield messages in which one call names another tool, for every call."""
    for place, message in enumerate(form):
        calls = message.get("tool_calls") or []
        for n, call in enumerate(calls):
            function = call["function"] | {"name": call["function"]["name"] + "0"}
            others = [*calls[:n], call | {"function": function}, *calls[n + 1 :]]
            yield [*form[:place], message | {"tool_calls": others}, *form[place + 1 :]]


def _place(text: str, opening: str, written: str, skipped: int) -> Span | None:
    """Return where what was written after an opening stands in a text that begins with both.

    Args:
        text: of the whole conversation.
        opening: what stands before the answer.
        written: the answer.
        skipped: characters at its beginning that the model did not write; the text may lack them.
    """
    for absent in (0, skipped):
        if text.startswith(opening + written[absent:]):
            start = len(opening) + skipped - absent
            return Span(start, len(opening) + len(written) - absent)
    return None


def _without_end(written: str, message: Message) -> str:
    """Return an answer up to the mark that ends it."""
    said = str(message["content"]).strip()
    end = written.rfind(said) + len(said)
    return written[:end] if said in written and said and not message.get("tool_calls") else written


def _without_system(form: Sequence[Message]) -> list[Message]:
    """Return messages with the system prompt at the head of the first question."""
    system, question, *rest = form
    return [question | {"content": f"{system['content']}\n\n{question['content']}"}, *rest]

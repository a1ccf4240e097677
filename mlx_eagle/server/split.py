"""What a model writes, cut into events as it comes: thoughts, words, calls of tools.

Line breaks around thoughts and calls belong to the marks, not to what is said: they are held back
until it is known what follows.

Models write calls that are no JSON, or not that of an object. OpenAI's APIs hand arguments over as
text, and their clients check it: there a call that was sent in parts stays one, as it was written.
Anthropic's API hands over an object: there a call is sent in parts where a grammar forces it, and
else once it is read. What is read as a whole and cannot be is text, in all of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from mlx_eagle.answers.answer_format import AnswerFormat, Part
from mlx_eagle.answers.sections import Kind, Place, Span
from mlx_eagle.answers.tool_calls import (
    Call,
    parse_arguments,
    parse_calls,
    parse_json,
    tool_name,
)
from mlx_eagle.server.call_stream import CallStream
from mlx_eagle.server.events import CallEnd, CallPart, CallStart, Event, Said, Thought, TokenLogprob
from mlx_eagle.server.keyed_stream import KeyedStream
from mlx_eagle.server.refusal import RefusalError

BREAKS = "\n"


class Split:
    """Turns the spans of one answer into events.

    Args:
        form: how the model writes its answers.
        tools: that it was offered.
        new_id: returns the name of a call.
        takes_text: whether arguments are handed over as text, whatever it is.
        loose: names of the tools whose arguments no grammar forces; None: it forces no call.

    Attributes:
        n_calls: calls that have begun.
        n_complete: of them, those that the model has ended.
        n_unread: parts that should have been calls and could not be read.
    """

    def __init__(
        self,
        form: AnswerFormat,
        tools: Sequence[Any],
        new_id: Callable[[], str],
        *,
        takes_text: bool = True,
        loose: Collection[str] | None = None,
    ) -> None:
        self._form, self._tools, self._new_id = form, tools, new_id
        self._takes_text, self._loose = takes_text, loose
        self._part: Part | None = None  # of a call, as far as it was written
        self._stream: CallStream | KeyedStream | None = None  # what of it is sent already
        self._breaks = {Kind.SAID: "", Kind.THOUGHT: ""}  # held back
        self._has_said = self._has_thought = False
        self._is_alone = True  # nothing but words so far
        self._bare = "" if tools and form.writes_bare_calls else None  # may be a call as a whole
        self._logprobs = list[TokenLogprob]()
        self.n_calls = self.n_complete = self.n_unread = 0

    def add(self, spans: Sequence[Span], logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """Return the events of some text; log-probabilities go with what is said."""
        self._logprobs += logprobs
        return [event for span in _whole_marks(spans) for event in self._add(span)]

    def finish(self, *, is_cut: bool) -> list[Event]:
        """Return what was held back, now that nothing follows.

        Args:
            is_cut: whether the answer was ended, and did not end.
        """
        events = list(self._end_call(is_cut)) if self._part is not None else []
        if self._bare:
            events += self._end_bare()
        if self._is_alone and self._breaks[Kind.SAID]:
            events.append(self._said(self._breaks[Kind.SAID]))
        if self._logprobs:
            events.append(self._said(""))
        return events

    def _add(self, span: Span) -> Iterator[Event]:
        if self._part is not None and span.kind is not Kind.TOOL:  # a header that ends no part
            yield from self._end_call(is_cut=False)
        if span.kind is Kind.TOOL and self._tools:
            yield from self._tool(span)
        elif span.kind is Kind.THOUGHT:
            self._is_alone = False
            if span.place is Place.BODY:
                yield from self._body(span.text, Kind.THOUGHT)
            elif span.place is Place.END:
                self._breaks[Kind.THOUGHT] = ""
        elif span.place is Place.BODY or not self._form.has_channels:
            yield from self._words(span.text)
        elif span.place is Place.START:
            self._begin_paragraph()

    def _words(self, text: str) -> Iterator[Event]:
        """Pass on what is said, unless the whole of it may yet be a call."""
        if self._bare is not None:
            self._bare += text
            if not self._bare.lstrip() or self._bare.lstrip()[0] in "{[":
                return
            text, self._bare = self._bare, None
        yield from self._body(text, Kind.SAID)

    def _begin_paragraph(self) -> None:
        """Set what follows apart, where headers do."""
        if self._form.has_channels and self._has_said:
            self._breaks[Kind.SAID] = "\n\n"

    def _body(self, text: str, kind: Kind) -> Iterator[Event]:
        """Pass on words or thoughts, but for the line breaks at their end."""
        text = self._breaks[kind] + text
        has_begun = self._has_said if kind is Kind.SAID else self._has_thought
        if not has_begun and not (kind is Kind.SAID and self._is_alone):
            text = text.lstrip(BREAKS)
        kept = text.rstrip(BREAKS)
        self._breaks[kind] = text[len(kept) :]
        if not kept:
            return
        if kind is Kind.SAID:
            self._has_said = True
            yield self._said(kept)
        else:
            self._has_thought = True
            yield Thought(kept)

    def _said(self, text: str) -> Said:
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Said(text, logprobs)

    # Calls

    def _tool(self, span: Span) -> Iterator[Event]:
        """Take in a piece of a call, and send what of it is certain."""
        self._is_alone = False
        if self._part is None or (span.place is Place.START and self._part.body):
            yield from self._end_call(is_cut=False) if self._part is not None else ()
            self._part, self._stream = Part(Kind.TOOL), self._new_stream()
        field = span.place.value
        self._part = self._part._replace(**{field: getattr(self._part, field) + span.text})
        if span.place is Place.BODY and self._stream is not None:
            yield from self._after_words(self._stream.add(span.text))
        if span.place is Place.END:
            yield from self._end_call(is_cut=False)

    def _new_stream(self) -> CallStream | KeyedStream | None:
        """Return what sends arguments as they are written; None where they are read as a whole."""
        form, loose = self._form, self._loose
        if form.call_layout is not None and loose is not None:
            count = Counter(map(tool_name, self._tools))  # one name may stand in two namespaces
            known = {name for name, n in count.items() if n == 1 and name not in loose}
            tools = [tool for tool in self._tools if tool_name(tool) in known]
            return KeyedStream(tools, form.call_layout, self.n_calls, self._new_id)
        if form.has_channels or (loose is None and not self._takes_text):
            return None
        return CallStream(self._tools, self.n_calls, self._new_id)

    def _end_call(self, is_cut: bool) -> Iterator[Event]:
        """Send what is still to be sent of a call; what cannot be read is text.

        Raises:
            RefusalError: if what was sent is no call, where that cannot be.
        """
        part, stream = self._part, self._stream
        assert part is not None, "a call is open"
        self._part = self._stream = None
        is_cut = is_cut and not part.end
        if stream is not None and not is_cut:
            yield from stream.finish()
        if stream is not None and stream.n_begun:
            yield from self._end_begun(stream, is_cut)
            if not stream.rest.strip():
                return
            part = part._replace(body=stream.rest)
            written = stream.rest
        else:
            written = part.body if self._form.has_channels else part.raw
        calls = [] if is_cut and self._form.has_channels else self._form.calls(part, self._tools)
        yield from self._after_words(self._whole_calls(calls))
        if not calls:
            self.n_unread += 1
            self._begin_paragraph()
            yield from self._words(written)

    def _end_begun(self, stream: CallStream | KeyedStream, is_cut: bool) -> Iterator[Event]:
        """End the last of the calls that were sent in parts; one that was cut stays open."""
        self.n_calls += stream.n_begun
        self.n_complete += stream.n_begun - is_cut
        if is_cut:
            return
        if not self._takes_text and parse_arguments(stream.arguments) is None:
            raise RefusalError(
                "call",
                "the model has called a tool with arguments that are no JSON object, and they were "
                "sent in parts; ask again, with another seed or prompt",
            )
        yield CallEnd(self.n_calls - 1)

    def _after_words(self, events: Iterator[Event]) -> Iterator[Event]:
        """Send events of calls; words before them that were held back were no call."""
        for event in events:
            text, self._bare = self._bare or "", None
            yield from self._body(text, Kind.SAID)
            yield event

    def _end_bare(self) -> list[Event]:
        """Return the calls that an answer is as a whole, or else its words."""
        text, self._bare = self._bare or "", None
        calls = parse_calls(text, parse_json, self._tools)
        self._is_alone = self._is_alone and not calls
        return list(self._whole_calls(calls)) if calls else list(self._body(text, Kind.SAID))

    def _whole_calls(self, calls: Sequence[Call]) -> Iterator[Event]:
        """Send calls that are complete."""
        for call in calls:
            index, self.n_calls = self.n_calls, self.n_calls + 1
            self.n_complete += 1
            yield CallStart(index, call.id or self._new_id(), call.name)
            yield CallPart(index, json.dumps(call.arguments, ensure_ascii=False))
            yield CallEnd(index)


def _whole_marks(spans: Sequence[Span]) -> list[Span]:
    """Return spans in which a mark is one, however many tokens it came in."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if (
            last
            and span.place is not Place.BODY
            and (span.kind, span.place) == (last.kind, last.place)
        ):
            joined[-1] = last._replace(text=last.text + span.text)
        else:
            joined.append(span)
    return joined

"""What happens while an answer is made, as one stream that every API writes in its own words."""

from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Tokens of one answer.

    Attributes:
        prompt: of the prompt, the cached ones included.
        cached: of the prompt, already read before.
        completion: of the answer, thoughts and calls included.
        thought: of the answer, thoughts.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    thought: int = 0


class TokenLogprob(NamedTuple):
    """One token with its log-probability and the likeliest ones; texts are bytes of UTF-8."""

    text: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class Reading(NamedTuple):
    """Some of the prompt is read; the first one says what was cached."""

    done: int
    total: int


class Thought(NamedTuple):
    """A piece of what the model thinks."""

    text: str


class Said(NamedTuple):
    """A piece of what the model says; `logprobs` are of the tokens that it came with."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class CallStart(NamedTuple):
    """A call of a tool begins; `place` counts the calls of the answer."""

    place: int
    id: str
    name: str


class CallPart(NamedTuple):
    """A piece of the arguments, which together are one JSON object."""

    place: int
    text: str


class CallEnd(NamedTuple):
    """The arguments of a call are complete."""

    place: int


class Drafted(NamedTuple):
    """What a token was and where it came from, for those who asked to see it.

    Attributes:
        text: of the token, as the answer shows it.
        from_draft: whether it was drafted and accepted.
        tree: the round's tree with its first token: "tokens" (texts), "parents", "path".
    """

    text: str
    from_draft: bool
    tree: dict[str, Any] | None


class End(NamedTuple):
    """The answer has ended.

    Attributes:
        reason: "stop", "length", "tool_calls" or "cancelled".
        stop: the stop string that ended it, "" if none did.
        usage: tokens.
        figures: of speed and drafting, see `answer_events.figures`.
        is_full: whether no more fits into the context.
        tier: where the rows were kept that were used again: "memory", "disk", or "".
        n_unread: parts that look like calls and are none; they are text of the answer.
    """

    reason: str
    stop: str
    usage: Usage
    figures: dict[str, Any]
    is_full: bool = False
    tier: str = ""
    n_unread: int = 0


class Failed(NamedTuple):
    """The answer could not be completed; `kind` is one of `refusal.WORDINGS`."""

    kind: str
    message: str


Event = Reading | Thought | Said | CallStart | CallPart | CallEnd | Drafted | End | Failed


class CalledTool(NamedTuple):
    """A whole call; `arguments` is JSON text, which is cut short where the answer was."""

    id: str
    name: str
    arguments: str
    is_complete: bool


class Whole(NamedTuple):
    """An answer that has ended, put together."""

    thought: str
    said: str
    calls: list[CalledTool]
    logprobs: list[TokenLogprob]
    end: End


class Collector:
    """Puts an answer together from its events."""

    def __init__(self) -> None:
        self._thought, self._said = list[str](), list[str]()
        self._calls, self._logprobs = list[CalledTool](), list[TokenLogprob]()

    def add(self, event: Event) -> Whole | None:
        """Take in an event; the last one gives the whole answer."""
        match event:
            case Thought(text):
                self._thought.append(text)
            case Said(text, logprobs):
                self._said.append(text)
                self._logprobs += logprobs
            case CallStart(_, call_id, name):
                self._calls.append(CalledTool(call_id, name, "", False))
            case CallPart(place, text):
                call = self._calls[place]
                self._calls[place] = call._replace(arguments=call.arguments + text)
            case CallEnd(place):
                self._calls[place] = self._calls[place]._replace(is_complete=True)
            case End():
                texts = "".join(self._thought), "".join(self._said)
                return Whole(*texts, self._calls, self._logprobs, event)
        return None

"""Events on their way from the engine to a client that may read slowly, or not at all."""

import asyncio

from mlx_eagle.server.events import CallPart, Drafted, Event, Reading, Said, Thought

MANY = 64  # events, beyond which texts are joined
TOO_MANY = 1024  # beyond which nobody is told what was drafted


class Outbox:
    """Holds the events of one answer until they are sent; used on the event loop alone."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def put(self, event: Event) -> None:
        """Take in an event; where many wait, it is joined with the one before, or left out."""
        if isinstance(event, Drafted) and len(self._events) >= TOO_MANY:
            return
        joined = _join(self._events[-1], event) if len(self._events) >= MANY else None
        if joined is None:
            self._events.append(event)
        else:
            self._events[-1] = joined
        self._news.set()

    def wake(self) -> None:
        """Let `take` return although there may be nothing."""
        self._news.set()

    async def take(self, seconds: float | None = None) -> list[Event]:
        """Return all events that are there, after waiting for some; perhaps none.

        Args:
            seconds: to wait at most.
        """
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may lose a cancellation
                await self._news.wait()
        except TimeoutError:
            return []
        self._news.clear()
        events, self._events = self._events, []
        return events


def _join(last: Event, new: Event) -> Event | None:
    """Return one event for two, if that loses nothing."""
    match last, new:
        case Said(text, logprobs), Said(more, others):
            return Said(text + more, logprobs + others)
        case Thought(text), Thought(more):
            return Thought(text + more)
        case CallPart(index, text), CallPart(other, more) if index == other:
            return CallPart(index, text + more)
        case Reading(), Reading():
            return new
    return None

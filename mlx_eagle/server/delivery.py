"""An answer on its way to a client: as a stream, or at once; cancelled when the client goes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_eagle.server.desk import Running
from mlx_eagle.server.events import Collector, End, Event, Failed, Reading
from mlx_eagle.server.faults import failure
from mlx_eagle.server.refusal import RefusalError, as_json, error_body, status_of
from mlx_eagle.server.writer import Writer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OUTCOME = "mlx_eagle.outcome"  # in a scope
BEAT = 10.0  # seconds of silence, after which a stream shows that it lives
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@dataclass
class Outcome:
    """What became of a request, for counts and for the log; no text of it.

    Attributes:
        api: of the request.
        first_seconds: from its acceptance to the first of the answer; None where none came.
        end: of the answer, if it came to one.
        failure: a kind of refusal, if it failed; "" if not.
    """

    api: str
    first_seconds: float | None = None
    end: End | None = None
    failure: str = ""


class Delivery:
    """Sends one answer; an ASGI application for one request.

    Args:
        running: the answer.
        writer: of its API.
        request_id: of the request.
        beat: seconds of silence, after which a stream shows that it lives.
    """

    def __init__(
        self, running: Running, writer: Writer, request_id: str, beat: float = BEAT
    ) -> None:
        self._running, self._writer = running, writer
        self._request_id, self._beat = request_id, beat
        self._read = (0, running.prepared.n_prompt)
        self.outcome = Outcome(running.prepared.asked.api)
        self._is_gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, unless the client goes away before."""
        watch = asyncio.create_task(self._watch(receive))
        scope[OUTCOME] = self.outcome
        try:
            if self._running.prepared.asked.streams:
                await self._send_stream(send)
            else:
                await self._send_whole(send)
        finally:
            watch.cancel()
            self._running.cancel()

    async def _watch(self, receive: Receive) -> None:
        """Wait until the client goes away, and end the answer then."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._running.cancel()
        self._running.outbox.wake()

    async def _send_stream(self, send: Send) -> None:
        await start_answer(send, 200, STREAM_HEADERS)
        await send_part(send, self._writer.begin())
        silent_since, is_over = time.monotonic(), False
        while not self._is_gone and not is_over:
            # What is read of a prompt happens often, and sends nothing.
            left = max(silent_since + self._beat - time.monotonic(), 0)
            lines, is_over = self._write(await self._take(left))
            if not lines and not is_over and time.monotonic() >= silent_since + self._beat:
                lines = self._heartbeat()
            if lines or is_over:
                await send_part(send, lines, is_last=is_over)
                silent_since = time.monotonic()

    def _write(self, events: Sequence[Event]) -> tuple[bytes, bool]:
        """Return what a stream sends for events, and whether it is over then."""
        lines, last = b"", None
        try:
            for last in events:
                self._note(last)
                lines += self._writer.write(last)
        except Exception as error:
            last = failure(self._request_id, error)
            self._note(last)
            lines += self._writer.write(last)
        return lines, isinstance(last, End | Failed)

    async def _send_whole(self, send: Send) -> None:
        collector = Collector()
        while not self._is_gone:
            for event in await self._take():
                self._note(event)
                last = self._whole(collector, event)
                if isinstance(last, bytes):
                    await send_body(send, 200, last)
                    return
                if isinstance(last, Failed):
                    refusal = RefusalError(last.kind, last.message)
                    await send_refusal(send, refusal, self._api, self._request_id)
                    return

    def _whole(self, collector: Collector, event: Event) -> bytes | Failed | None:
        """Return the body of the answer once it has ended, or why there is none."""
        if isinstance(event, Failed):
            return event
        try:
            whole = collector.add(event)
            return None if whole is None else as_json(self._writer.whole(whole))
        except Exception as error:
            failed = failure(self._request_id, error)
            self._note(failed)
            return failed

    async def _take(self, seconds: float | None = None) -> list[Event]:
        """Return what has happened; nothing once the client has gone."""
        events = await self._running.outbox.take(seconds)
        return [] if self._is_gone else events

    @property
    def _api(self) -> str:
        return self._running.prepared.asked.api

    def _note(self, event: Event) -> None:
        """Note how much of the prompt is read, and what became of the answer."""
        outcome = self.outcome
        match event:
            case Reading(done, total):
                self._read = (done, total)
            case End():
                outcome.end = event
            case Failed(kind):
                outcome.failure = kind
            case _ if outcome.first_seconds is None:
                outcome.first_seconds = time.monotonic() - self._running.accepted

    def _heartbeat(self) -> bytes:
        seconds = time.monotonic() - self._running.accepted
        return self._writer.beat(seconds, *self._read)


async def start_answer(send: Send, status: int, headers: dict[str, str]) -> None:
    """Send a status and headers."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def send_part(send: Send, body: bytes, *, is_last: bool = False) -> None:
    """Send a part of a body."""
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})


async def send_json(
    send: Send, status: int, value: Any, headers: dict[str, str] | None = None
) -> None:
    """Send a value as JSON."""
    await send_body(send, status, as_json(value), headers)


async def send_body(
    send: Send, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    """Send a body of JSON."""
    own = {"content-type": "application/json", "content-length": str(len(body))}
    await start_answer(send, status, own | (headers or {}))
    await send_part(send, body, is_last=True)


async def send_refusal(send: Send, refusal: RefusalError, api: str, request_id: str) -> None:
    """Send a refusal in the form of an API."""
    body = error_body(refusal, api, request_id)
    await send_json(send, status_of(refusal, api), body, refusal.headers())

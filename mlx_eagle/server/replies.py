"""Responses of Starlette's kind: a JSON object, a refusal, a stream that fails at once."""

from collections.abc import Mapping
from typing import Any

from mlx_eagle.server.delivery import (
    OUTCOME,
    STREAM_HEADERS,
    Outcome,
    Receive,
    Scope,
    Send,
    send_json,
    send_part,
    send_refusal,
    start_answer,
)
from mlx_eagle.server.events import Failed
from mlx_eagle.server.guard import ID, with_headers
from mlx_eagle.server.refusal import RefusalError, api_of
from mlx_eagle.server.writer import Writer


class Answered:
    """A response of Starlette's kind that sends one JSON object."""

    def __init__(self, value: Any, status: int = 200) -> None:
        self._value, self._status = value, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send_json(send, self._status, self._value)


class Refused:
    """A response of Starlette's kind that sends a refusal."""

    def __init__(self, refusal: RefusalError, headers: Mapping[str, str] | None = None) -> None:
        self._refusal, self._headers = refusal, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        outward = with_headers(send, self._headers) if self._headers else send
        await send_refusal(outward, self._refusal, api_of(scope["path"]), scope[ID])


class FailedStream:
    """A stream that fails at once: where a client knows an error only as an event."""

    def __init__(self, writer: Writer, refusal: RefusalError) -> None:
        self._writer, self._refusal = writer, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        failed = Failed(self._refusal.kind, str(self._refusal))
        scope[OUTCOME] = Outcome(api_of(scope["path"]), failure=failed.kind)
        await start_answer(send, 200, STREAM_HEADERS)
        await send_part(send, self._writer.begin() + self._writer.write(failed), is_last=True)

"""Who may ask: checked before anything of a request's body is read.

A server on loopback is not out of reach: any page that a browser on this machine shows can send
requests to it, and with a name of its own that leads here (DNS rebinding) read the answers. So the
name that was asked for must be this machine's, a page must be ours or a listed one, and JSON must
be called JSON, which a page of others cannot do without asking first.
"""

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from mlx_eagle.server.delivery import Receive, Scope, Send, send_part, send_refusal, start_answer
from mlx_eagle.server.faults import failure
from mlx_eagle.server.ids import new_id
from mlx_eagle.server.refusal import RefusalError, api_of

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Done = Callable[[Scope, int, float], None]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAME = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]@/\s]+)(?::(?P<port>\d{1,5}))?")
ID = "mlx_eagle.request_id"  # in a scope
SALT = "mlx_eagle.salt"  # in a scope: tells apart who has which key, where there are several
SAFE_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
ALLOWED_METHODS = "GET, POST, OPTIONS"
SALT_DIGITS = 16  # hexadecimal
GONE = 499  # the status that is noted for a client that went away before it got one


class Rules(NamedTuple):
    """Who may ask.

    Attributes:
        host: the address that the server listens on.
        hosts: further names under which it may be asked for.
        origins: of pages that may use it, as browsers write them.
        keys: of which requests must have one; none: they need none.
        open_paths: that need no key.
        max_body: bytes of a body.
        body_silence: seconds without a byte of a body, after which a request is given up.
        body_seconds: for a whole body.
    """

    host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset()
    max_body: int = 32 << 20
    body_silence: float = 30.0
    body_seconds: float = 300.0


class Guard:
    """Refuses what may not ask, and names every request; the outermost ASGI application.

    Args:
        app: that answers the rest.
        rules: who may ask.
        done: told of every request that is over: its scope, the status and the seconds.
        posted: paths to which something may be posted; bodies for others are not looked at, and
            the application says that. None: all.
    """

    def __init__(
        self,
        app: App,
        rules: Rules,
        done: Done | None = None,
        posted: Collection[str] | None = None,
    ) -> None:
        self._app, self._rules, self._done, self._posted = app, rules, done, posted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on; tell that it is over."""
        if scope["type"] != "http" or self._done is None:
            await self._answer(scope, receive, send)
            return
        started, status = time.monotonic(), GONE  # until one is sent

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except Exception as error:  # what is raised further is written to stderr, with its text
            failed = failure(scope.get(ID, "a request"), error)
            if status == GONE:
                refusal = RefusalError(failed.kind, failed.message)
                await send_refusal(noted, refusal, api_of(scope["path"]), scope.get(ID, ""))
        finally:
            self._done(scope, status, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope[ID] = request_id = new_id("req_")
        headers = _headers(scope)
        own = {"x-request-id": request_id, "request-id": request_id} | SAFE_HEADERS
        outward, is_listed = with_headers(send, own), False
        try:
            self._check_name(scope, headers)
            is_listed = headers.get("origin") in self._rules.origins
            if is_listed:  # such a page may read what it is refused, too
                own |= {"access-control-allow-origin": headers["origin"], "vary": "Origin"}
                outward = with_headers(send, own)
            self._check(scope, headers)
        except RefusalError as refusal:
            await send_refusal(outward, refusal, api_of(scope["path"]), request_id)
            return
        if scope["method"] == "OPTIONS" and is_listed:
            await self._preflight(outward, headers)
            return
        await self._app(scope, receive, outward)

    def _check_name(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse requests that ask for another server, and pages that are not ours or listed.

        Raises:
            RefusalError: naming what is wrong.
        """
        hosts = [v for name, v in scope["headers"] if name.lower() == b"host"]
        if len(hosts) != 1 or not self._is_ours(headers["host"]):
            raise RefusalError(
                "foreign", "this server does not answer under that name (Host); see --allow-host"
            )
        self._check_page(scope, headers)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse a request without a key, or whose body is none that is read here.

        Raises:
            RefusalError: naming what is wrong.
        """
        is_preflight = scope["method"] == "OPTIONS"
        if self._rules.keys and not is_preflight and scope["path"] not in self._rules.open_paths:
            scope[SALT] = self._salt(self._checked_key(headers))
        if scope["method"] == "POST" and (self._posted is None or scope["path"] in self._posted):
            self._check_body(headers)

    def _check_page(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse requests of pages that are not ours and not listed."""
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                raise RefusalError("foreign", "pages of other origins may not use this server")
            return
        own = f"{scope.get('scheme', 'http')}://{headers['host']}"
        if origin != own and origin not in self._rules.origins:
            message = "pages of this origin may not use this server; see --allow-origin"
            raise RefusalError("foreign", message)

    def _checked_key(self, headers: Mapping[str, str]) -> str:
        """Return which of the keys a request has; all are compared, whichever it is."""
        bearer = headers.get("authorization", "")
        scheme, _, token = bearer.partition(" ")
        given = [headers.get("x-api-key", ""), token.strip() if scheme.lower() == "bearer" else ""]
        # Headers were read as Latin-1, which gives back the bytes that came.
        matches = [
            key
            for key in self._rules.keys
            for one in given
            if hmac.compare_digest(one.encode("latin-1"), key.encode())
        ]
        if not matches:
            raise RefusalError("key", "the key is missing or wrong (Authorization: Bearer ...)")
        return matches[0]

    def _salt(self, key: str) -> str:
        """Return what tells the rows of a key from those of others; "" where there is one key.

        How soon an answer begins would tell one client what another one has asked.
        """
        if len(self._rules.keys) == 1:
            return ""
        return hashlib.sha256(b"mlx-eagle rows " + key.encode()).hexdigest()[:SALT_DIGITS]

    def _check_body(self, headers: Mapping[str, str]) -> None:
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise RefusalError("media", "bodies must be JSON (Content-Type: application/json)")
        length = headers.get("content-length", "0")
        is_number = length.isascii() and length.isdecimal()
        if not is_number or len(length) > 15 or int(length) > self._rules.max_body:
            raise _too_large(self._rules.max_body)

    def _is_ours(self, host: str) -> bool:
        """Say whether a Host header names this server."""
        found = NAME.fullmatch(host.strip())
        if found is None:
            return False
        name = found["name"].strip("[]").lower().removesuffix(".")
        known = (*LOOPBACK, self._rules.host.lower(), *(h.lower() for h in self._rules.hosts))
        return name in known or name.endswith(".localhost")

    async def _preflight(self, send: Send, headers: Mapping[str, str]) -> None:
        """Tell a listed page's browser what the page may send."""
        own = {
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": "600",
        }
        if headers.get("access-control-request-private-network") == "true":
            own["access-control-allow-private-network"] = "true"
        await start_answer(send, 204, own)
        await send_part(send, b"", is_last=True)


async def read_all(receive: Receive, rules: Rules) -> bytes:
    """Return the body of a request.

    Raises:
        RefusalError: if it is too large, comes too slowly, or its client has gone.
    """
    body, until = bytearray(), time.monotonic() + rules.body_seconds
    while True:
        seconds = min(rules.body_silence, until - time.monotonic())
        try:
            async with asyncio.timeout(max(seconds, 0)):
                message = await receive()
        except TimeoutError:
            text = f"nothing of the body came for {seconds:.3g} s"
            if seconds < rules.body_silence:
                text = f"the body did not come within {rules.body_seconds:g} s"
            raise RefusalError("slow", text) from None
        if message["type"] == "http.disconnect":
            raise RefusalError("slow", "the client went away")
        body += message.get("body", b"")
        if len(body) > rules.max_body:
            raise _too_large(rules.max_body)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(most: int) -> RefusalError:
    return RefusalError("too_large", f"bodies may have {most} bytes at most")


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, names in lower case; of repeated ones the last."""
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


def with_headers(send: Send, own: Mapping[str, str]) -> Send:
    """Return a `send` that adds headers."""
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in own.items()]

    async def outward(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *pairs]
        await send(message)

    return outward

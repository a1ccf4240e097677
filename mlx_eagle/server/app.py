"""The application: which path is answered by what, and one request from its body to its answer."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_eagle.engine import Engine
from mlx_eagle.server.asked import Asked
from mlx_eagle.server.bodies import Body, read_body
from mlx_eagle.server.chat_body import ChatBody, read_chat
from mlx_eagle.server.chat_writer import ChatWriter
from mlx_eagle.server.completions_body import CompletionsBody, read_completions
from mlx_eagle.server.completions_writer import CompletionsWriter
from mlx_eagle.server.delivery import BEAT, OUTCOME, Delivery, Scope
from mlx_eagle.server.desk import Desk
from mlx_eagle.server.faults import LOG, failure
from mlx_eagle.server.guard import ID, SALT, App, Guard, Rules, read_all
from mlx_eagle.server.ids import ServedModel
from mlx_eagle.server.in_hand import InHand
from mlx_eagle.server.messages_body import CountBody, MessagesBody, read_count, read_messages
from mlx_eagle.server.messages_writer import MessagesWriter
from mlx_eagle.server.meters import Meters, log_line
from mlx_eagle.server.models_list import list_models, one_model
from mlx_eagle.server.openapi import describe
from mlx_eagle.server.pages import FILES, MOST_BYTES, MarkdownBody, Page, render
from mlx_eagle.server.prepare import Preparer
from mlx_eagle.server.refusal import RefusalError, known_api
from mlx_eagle.server.replies import Answered, FailedStream, Refused
from mlx_eagle.server.responses_body import ResponsesBody, read_responses
from mlx_eagle.server.responses_writer import ResponsesWriter
from mlx_eagle.server.writer import Writer
from mlx_eagle.session.prefix_cache import PrefixCache
from mlx_eagle.worker import Worker

QUIET_PATHS = ("/health", "/metrics")  # which are asked for again and again
POSTS: dict[str, type[Body]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionsBody,
    "/v1/responses": ResponsesBody,
    "/v1/messages": MessagesBody,
    "/v1/messages/count_tokens": CountBody,
    "/page/markdown": MarkdownBody,
}
GETS = {
    "/health": "application/json",
    "/v1/models": "application/json",
    "/v1/cache": "application/json",
    "/v1/status": "application/json",
    "/metrics": "text/plain",
    "/": "text/html",
}
OPEN_PATHS = frozenset({"/health", *FILES})
T = TypeVar("T")
MakeWriter = Callable[[Asked, ServedModel, int], Writer]


class Settings(NamedTuple):
    """What an operator decides.

    Attributes:
        name: of the model, for clients; None: that of the target.
        rules: who may ask.
        queue: requests that may wait.
        max_seconds: of an answer; None: any.
        grace: seconds that answers have to end once the server stops.
        beat: seconds of silence, after which a stream shows that it lives.
        bodies: that are read and made ready at once.
    """

    name: str | None = None
    rules: Rules = Rules()
    queue: int = 16
    max_seconds: float | None = None
    grace: float = 10.0
    beat: float = BEAT
    bodies: int = 32


class Server:
    """What answers requests with one engine.

    Args:
        engine: that answers; it belongs to the worker's thread.
        worker: the thread.
        settings: what the operator decided.
    """

    def __init__(self, engine: Engine, worker: Worker, settings: Settings) -> None:
        self._engine, self._worker, self._settings = engine, worker, settings
        self._preparer = Preparer(engine, engine.info.recommended)
        self.desk = Desk(
            engine,
            worker,
            most_waiting=settings.queue,
            max_seconds=settings.max_seconds,
            before=self._preparer.measure_context,
        )
        self._thread = ThreadPoolExecutor(1, "mlx-eagle-prepare")
        self._in_hand = InHand(settings.bodies)
        self.model = served_model(engine, self._preparer, settings.name)
        self.meters = Meters(self._gauges())
        routes = self._routes()
        self.app: App = Guard(routes, settings.rules, self._note, _posted(routes))

    async def stop(self) -> None:
        """Accept nothing more, and end what runs."""
        await self.desk.stop(self._settings.grace)
        self._thread.shutdown(wait=False)

    def _routes(self) -> Starlette:
        """Return the application behind the guard."""
        get: dict[str, Any] = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/cache": self._cache,
            "/status": self._status,
            "/openapi.json": self._openapi,
            "/models": self._models,
            "/models/{name:path}": self._one_model,
        }
        post: dict[str, Any] = {
            "/chat/completions": self._endpoint(ChatBody, read_chat, ChatWriter),
            "/completions": self._endpoint(CompletionsBody, read_completions, CompletionsWriter),
            "/responses": self._endpoint(ResponsesBody, read_responses, ResponsesWriter),
            "/messages": self._endpoint(MessagesBody, read_messages, MessagesWriter),
            "/messages/count_tokens": self._one_in_hand(self._count),
            "/cache/clear": self._clear_cache,
        }
        routes = [
            Route(prefix + path, guarded(handler), methods=[method])
            for method, handlers in (("GET", get), ("POST", post))
            for path, handler in handlers.items()
            for prefix in ("", "/v1")
        ]
        routes += [Route(path, self._page, methods=["GET"]) for path in FILES]
        markdown = guarded(self._one_in_hand(self._markdown))
        routes.append(Route("/page/markdown", markdown, methods=["POST"]))
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
        app.router.redirect_slashes = False
        return app

    # Answers

    def _endpoint(
        self, body: type[Body], read: Callable[[Any], Asked], make_writer: MakeWriter
    ) -> Callable[[Request], Awaitable[Any]]:
        """Return what answers the requests of one API."""

        async def endpoint(request: Request) -> Any:
            data = await read_all(request.receive, self._settings.rules)
            self.desk.check_room()
            asked = await self._prepare_thread(lambda: read(read_body(body, data)))
            client = request.headers.get("user-agent", "")
            request_id, salt = request.scope[ID], request.scope.get(SALT, "")
            own = {"client": client, "salt": salt, "request_id": request_id}
            asked = replace(asked, who=_who(request, asked), **own)
            writer = make_writer(asked, self.model, int(time.time()))
            try:
                prepared = await self._prepare_thread(self._preparer.prepare, asked)
            except RefusalError as refusal:
                if refusal.kind == "too_long" and asked.api == "responses" and asked.streams:
                    return FailedStream(writer, refusal)
                raise
            running = self.desk.accept(prepared)
            return Delivery(running, writer, request_id, self._settings.beat)

        return self._one_in_hand(endpoint)

    def _one_in_hand(
        self, endpoint: Callable[[Request], Awaitable[Any]]
    ) -> Callable[[Request], Awaitable[Any]]:
        """Return an endpoint that refuses a body where many are being read and made ready."""

        async def bounded(request: Request) -> Any:
            with self._in_hand.one():
                return await endpoint(request)

        return bounded

    async def _count(self, request: Request) -> Any:
        data = await read_all(request.receive, self._settings.rules)
        asked = await self._prepare_thread(lambda: read_count(read_body(CountBody, data)))
        n_tokens = await self._prepare_thread(self._preparer.count, asked)
        return Answered({"input_tokens": n_tokens})

    async def _prepare_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Return what a function returns on the thread of the tokenizer.

        Raises:
            RefusalError: if the server is stopping, which that thread does not outlive.
        """
        self.desk.check_running()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(function, *args))

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that is over, and write its line."""
        outcome = scope.get(OUTCOME)
        self.meters.count(known_api(scope["path"]) or "other", status, outcome)
        if scope["path"] not in QUIET_PATHS:
            LOG.info(log_line(scope, status, seconds, outcome))

    def _gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """Return what is measured when it is asked for, by name, each with what it is."""
        engine = self._engine

        def kept() -> float:
            return engine.prefix_cache.nbytes if engine.prefix_cache is not None else 0

        return {
            "queue_depth": ("Requests that wait.", lambda: self.desk.n_waiting),
            "active_memory_bytes": (
                "Bytes that MLX holds, weights included.",
                mx.get_active_memory,
            ),
            "cache_bytes": ("Bytes of the rows of earlier prompts in memory.", kept),
        }

    # What else is asked

    async def _page(self, request: Request) -> Any:
        return Page(FILES[request.url.path])

    async def _markdown(self, request: Request) -> Any:
        rules = self._settings.rules._replace(max_body=MOST_BYTES)
        data = await read_all(request.receive, rules)
        self.desk.check_running()
        # Odd texts take seconds, for which prompts need not wait.
        html = await asyncio.to_thread(lambda: render(read_body(MarkdownBody, data)))
        return Answered(html)

    async def _openapi(self, request: Request) -> Any:
        return Answered(describe(POSTS, GETS))

    async def _status(self, request: Request) -> Any:
        running = self.desk.now is not None
        return Answered({"running": int(running), "waiting": self.desk.n_waiting})

    async def _cache(self, request: Request) -> Any:
        kept, salt = self._engine.prefix_cache, request.scope.get(SALT, "")
        return Answered(await asyncio.to_thread(kept_rows, kept, salt))

    async def _clear_cache(self, request: Request) -> Any:
        await read_all(request.receive, self._settings.rules)
        kept, salt = self._engine.prefix_cache, request.scope.get(SALT, "")
        if kept is not None:
            await self._worker.acall(kept.clear, salt)
        return await self._cache(request)

    async def _metrics(self, request: Request) -> Any:
        return Response(self.meters.text(), media_type=self.meters.media_type)

    async def _health(self, request: Request) -> Any:
        if lost := self.desk.lost:
            return Answered({"status": "lost", "reason": lost}, 503)
        if self.desk.is_stopping:
            return Answered({"status": "stopping"}, 503)
        return Answered({"status": "ok"})

    async def _models(self, request: Request) -> Any:
        return Answered(list_models(self.model))

    async def _one_model(self, request: Request) -> Any:
        if request.path_params["name"] != self.model.name:
            message = f"there is one model here, {self.model.name}"
            return Refused(RefusalError("unknown", message, "model"))
        return Answered(one_model(self.model))


def kept_rows(kept: PrefixCache | None, salt: str) -> dict[str, Any]:
    """Return what is kept of earlier prompts; it looks into folders.

    Args:
        kept: by the engine.
        salt: of a client that sees what is its own alone; "": of one that sees all.
    """
    n_prefixes, n_bytes = kept.held(salt) if kept is not None else (0, 0)
    files, disk = kept.files if kept is not None else None, None
    if files is not None and salt:
        disk = {"bytes": files.held(salt)}
    elif files is not None:
        disk = {"bytes": files.nbytes, "damaged": files.n_damaged, "evicted": files.n_evicted}
    return {"memory": {"prefixes": n_prefixes, "bytes": n_bytes}, "disk": disk}


def guarded(
    endpoint: Callable[[Request], Awaitable[Any]],
) -> Callable[[Request], Awaitable[Any]]:
    """Return an endpoint whose refusals and failures are answers; failures are logged by name."""

    async def safe(request: Request) -> Any:
        try:
            return await endpoint(request)
        except RefusalError as refusal:
            return Refused(refusal)
        except Exception as error:
            failed = failure(request.scope[ID], error)
            return Refused(RefusalError(failed.kind, failed.message))

    return safe


def _posted(app: Starlette) -> frozenset[str]:
    """Return the paths to which something may be posted."""
    routes = (route for route in app.routes if isinstance(route, Route))
    return frozenset(route.path for route in routes if "POST" in (route.methods or ()))


def served_model(engine: Engine, preparer: Preparer, name: str | None) -> ServedModel:
    """Return the model as clients see it."""
    info = engine.info
    thinks = any(mark.kind.name == "THOUGHT" for mark in engine.answer_format.marks)
    return ServedModel(
        name=name or short_name(info.target),
        created=int(time.time()),
        context=preparer.context,
        thinks=thinks or engine.answer_format.has_channels,
        calls=preparer.takes_tools,
        fingerprint=f"mlx-eagle {info.target_precision}",
    )


def short_name(target: str) -> str:
    """Return a name for clients, which some take for a part of a path: the last part of a target's.

    Args:
        target: a folder or a repository, and what is said of it.
    """
    last = target.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.:-]+", "-", last).strip("-") or "mlx-eagle"


def _who(request: Request, asked: Asked) -> str:
    """Return whose row a request waits in: a key, and what tells sessions of one client apart."""
    names = ("authorization", "x-api-key", "session_id", "x-session-id", "x-session-affinity")
    hints = [request.headers.get(name, "") for name in names]
    return "\n".join([*hints, asked.who])


async def _no_route(request: Request, error: Any) -> Any:
    """Answer what no route does."""
    if error.status_code == 405:
        refusal = RefusalError("method", "this path is asked by other methods (Allow)")
        return Refused(refusal, error.headers)
    return Refused(RefusalError("unknown", "there is nothing at this path"))

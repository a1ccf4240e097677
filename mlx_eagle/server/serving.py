"""A server on a socket: from the first request to a stop that lets answers end.

Requests that come while the model is being loaded are told so; clients ask again.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType

import uvicorn

from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.server.app import Server
from mlx_eagle.server.delivery import Receive, Scope, Send, send_json, send_refusal
from mlx_eagle.server.guard import ID, App, Guard, Rules
from mlx_eagle.server.refusal import LOST, RefusalError, api_of

BACKLOG = 128  # connections that may wait to be accepted
AFTER_GRACE = 5  # seconds for the last bytes once every answer has ended
LOOK = 0.2  # seconds between two looks whether the machines of the model are there
LOADING = RefusalError("stopping", "the model is being loaded; ask again soon", retry_after=5)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        EagleError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((host, port))
        own.listen(BACKLOG)
    except OSError as error:
        own.close()
        raise EagleError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; is another server "
            "running there? --port takes another one, 0 any that is free"
        ) from error
    return own


class Front:
    """The application: the server's once there is one, and before that one that says so.

    Args:
        rules: who may ask.
    """

    def __init__(self, rules: Rules) -> None:
        self._loading: App = Guard(_refuse_for_now, rules)
        self.server: Server | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        app = self._loading if self.server is None else self.server.app
        await app(scope, receive, send)

    @property
    def lost(self) -> str:
        """Why nothing can be answered any more; "" while it can."""
        return "" if self.server is None else self.server.desk.lost

    async def stop(self) -> None:
        """End what runs, if anything can."""
        if self.server is not None:
            await self.server.stop()


async def _refuse_for_now(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that the model is being loaded."""
    if scope["path"].rstrip("/").removeprefix("/v1") == "/health":
        await send_json(send, 503, {"status": "loading"}, LOADING.headers())
    else:
        await send_refusal(send, LOADING, api_of(scope["path"]), scope[ID])


class Runner(uvicorn.Server):
    """Uvicorn's server; the first signal stops it in good order, the second one at once."""

    def __init__(self, front: Front, grace: float) -> None:
        config = uvicorn.Config(
            front,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=round(grace) + AFTER_GRACE,
        )
        super().__init__(config)
        self._front = front
        self._stopping: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._stopping is not None:
            self.force_exit = self.should_exit = True
            return
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Let what runs end, then leave."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        await self._front.stop()
        self.should_exit = True


def run(
    loading: "Future[Server]",
    listening: socket.socket,
    rules: Rules,
    grace: float,
    ready: Callable[[Server], None],
) -> None:
    """Serve until a signal comes; returns once every answer has ended.

    Args:
        loading: becomes what answers.
        listening: a socket that listens; closed at the end.
        rules: who may ask.
        grace: seconds that answers have to end.
        ready: called once requests are answered.

    Raises:
        ClusterError: if a machine is lost among which the model is divided, once the server has
            stopped for it.
        Exception: what the loading raised.
    """
    front = Front(rules)
    runner = Runner(front, grace)

    async def load() -> None:
        """Let the server answer once it is there; without one there is nothing to go on for."""
        try:
            server = await asyncio.wrap_future(loading)
            while not runner.started:
                await asyncio.sleep(0.01)
            front.server = server
            ready(server)
        except BaseException:
            runner.should_exit = True
            raise

    async def main() -> None:
        loader = asyncio.create_task(load())
        task = asyncio.create_task(runner.serve(sockets=[listening]))
        while not task.done():
            if front.lost:
                runner.stop()
            await asyncio.wait([task], timeout=LOOK)
        loader.cancel()
        with suppress(asyncio.CancelledError):
            await loader
        await task

    try:
        asyncio.run(main())
    finally:
        listening.close()
    if lost := front.lost:
        raise ClusterError(LOST.format(lost))

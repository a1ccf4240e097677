"""A server on a socket: from the first request to a stop that lets answers end."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.server.app import Server
from mlx_eagle.server.desk import LOST
from mlx_eagle.server.guard import App

BACKLOG = 128  # connections that may wait to be accepted
AFTER_GRACE = 5  # seconds for the last bytes once every answer has ended
LOOK = 0.2  # seconds between two looks whether the machines of the model are there


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


class Runner(uvicorn.Server):
    """Uvicorn's server; the first signal stops it in good order, the second one at once."""

    def __init__(self, server: Server, app: App, grace: float) -> None:
        config = uvicorn.Config(
            app,
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
        self._ours = server
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
        await self._ours.stop()
        self.should_exit = True


def run(server: Server, listening: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    """Serve until a signal comes; returns once every answer has ended.

    Args:
        server: what answers.
        listening: a socket that listens; closed at the end.
        grace: seconds that answers have to end.
        ready: called once requests are taken.

    Raises:
        ClusterError: if a machine is lost among which the model is divided, once the server has
            stopped for it.
    """
    runner = Runner(server, server.app, grace)

    async def main() -> None:
        task = asyncio.create_task(runner.serve(sockets=[listening]))
        while not runner.started and not task.done():
            await asyncio.sleep(0.01)
        ready()
        while not task.done():
            if server.desk.lost:
                runner.stop()
            await asyncio.wait([task], timeout=LOOK)
        await task

    try:
        asyncio.run(main())
    finally:
        listening.close()
    if lost := server.desk.lost:
        raise ClusterError(LOST.format(lost))

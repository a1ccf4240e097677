"""A thread on which a process waits for others in MLX, which nothing can interrupt there."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_Found = TypeVar("_Found")


class ExchangeThread:
    """Runs exchanges one after the other; the program may end while one of them waits for ever."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, exchange: Callable[[], _Found]) -> "Future[_Found]":
        """Return what will be there when an exchange is over: its result, or what it raised."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="mlx-eagle-exchanges", daemon=True
            )
            self._thread.start()
        future: Future[_Found] = Future()
        self._waiting.put((exchange, future))
        return future

    def _run(self) -> None:
        """Run what is waiting."""
        while True:
            exchange, future = self._waiting.get()
            try:
                future.set_result(exchange())
            except BaseException as error:
                future.set_exception(error)
            del exchange, future  # the arrays of an exchange would wait for the next one

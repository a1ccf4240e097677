"""How many bodies are read and made ready at once: before the queue, nothing else bounds them."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlx_eagle.server.refusal import RefusalError


class InHand:
    """Counts bodies; used on the event loop alone.

    Args:
        most: bodies; a request with one more is refused, before it is read.
    """

    def __init__(self, most: int) -> None:
        self._most, self._n = most, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take one body in hand, until what it asks for waits for the engine, or is answered.

        Raises:
            RefusalError: if there are as many as may be.
        """
        if self._n >= self._most:
            raise RefusalError(
                "busy", f"{self._n} requests are being read already; try again soon", retry_after=1
            )
        self._n += 1
        try:
            yield
        finally:
            self._n -= 1

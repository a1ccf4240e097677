"""One thread at a time: what two threads ask of an engine at once is refused by name.

The target's hooks and MLX's streams belong to the step that runs. A thread that waits its turn
between two steps of another one is fine; `Worker` does that, and more.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_eagle.errors import EagleError

ADVICE = (
    "let one thread load it and use it; mlx_eagle.worker.Worker is such a thread, which others "
    "can ask"
)
FOREIGN_STREAM = "no Stream("  # in what MLX says of arrays of another thread


class Turn:
    """Whose turn it is to use an engine, and all that shares its weights."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Use the engine.

        Raises:
            EagleError: if another thread does, or MLX will not let this one.
        """
        if not self._lock.acquire(blocking=False):
            raise EagleError(f"another thread is using this engine at this moment: {ADVICE}")
        try:
            yield
        except RuntimeError as error:
            if FOREIGN_STREAM not in str(error):
                raise
            raise EagleError(
                f"this engine belongs to another thread ({error}): {ADVICE}"
            ) from error
        finally:
            self._lock.release()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Use the engine once no other thread does, to end what was begun."""
        with self._lock:
            yield

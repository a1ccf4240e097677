"""Files by which processes see that the others are still there.

Each keeps one, and touches it again and again; it goes when the process ends, well or badly. If it
stays and is not touched any more, the process was killed, or stands still. Clocks of several
machines are not compared: a file's time only has to change.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_eagle.errors import EagleError

BEAT = 5.0  # seconds between two beats
LOST = 120.0  # seconds without any after which a process counts as lost
LEFT = 10.0  # seconds without its file: one that has ended may have sent all that is waited for


@contextmanager
def heartbeat(file: Path) -> Iterator[None]:
    """Keep a file that is touched every `BEAT` seconds as long as the block runs.

    Raises:
        EagleError: if it cannot be written.
    """
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(BEAT):
            with suppress(OSError):  # those who wait are told if it lasts
                os.utime(file)

    try:
        file.touch()
    except OSError as error:
        raise EagleError(f"cannot write {file}: {error.strerror or error}") from error
    thread = threading.Thread(target=beat, name="mlx-eagle-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        with suppress(OSError):
            file.unlink()


class Heartbeats:
    """The heartbeats of others, as they are seen from now on.

    Args:
        files: of each process, by its rank.
    """

    def __init__(self, files: Mapping[int, Path]) -> None:
        now = time.monotonic()
        self._files = dict(files)
        self._seen = {rank: (_touched(file, None), now) for rank, file in files.items()}

    def lost(self) -> list[int]:
        """Return the processes that have not beaten for too long."""
        now, found = time.monotonic(), list[int]()
        for rank, file in self._files.items():
            before, since = self._seen[rank]
            touched = _touched(file, before)
            if touched != before:
                self._seen[rank] = (touched, now)
            elif now - since > (LEFT if touched is None else LOST):
                found.append(rank)
        return found


def _touched(file: Path, before: int | None) -> int | None:
    """Return when a file was touched, in nanoseconds; None if there is none.

    A folder on the network may fail for a moment: then it is as it was before.
    """
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:
        return before

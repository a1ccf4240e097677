"""A folder that appears whole or not at all.

It does not know what is written; `heads` and `targets` do.
"""

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mlx_eagle.errors import EagleError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends without an exception.

    Until then it is a hidden sibling of `out`. It is removed on any failure, Ctrl-C and SIGTERM
    included. Folders above `out` that do not exist are made at the end.

    Raises:
        EagleError: if `out` exists, at the start or by the end, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    _refuse_existing(out)
    above = next(folder for folder in out.parents if folder.exists())
    partial = above / f".{out.name}.{secrets.token_hex(4)}.partial"
    with _sigterm_raises():
        try:
            partial.mkdir()
            yield partial
            _flush(partial)
            _refuse_existing(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(out)
        except OSError as error:
            raise EagleError(f"cannot write {out}: {error.strerror or error}") from error
        finally:
            if partial.exists():
                shutil.rmtree(partial)


def _refuse_existing(out: Path) -> None:
    """Raise if there is anything at `out`, a dangling link included."""
    if os.path.lexists(out):
        raise EagleError(
            f"{out} exists and is never overwritten: choose another folder, or remove it first"
        )


def _flush(folder: Path) -> None:
    """Wait until every file is on the disk: a power cut after the rename must not empty them."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside the block, so that `finally` runs.

    Only the main thread can do that; elsewhere the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(signal_number: int, frame: FrameType | None) -> None:
    """End the program with the status that shells give to a signal."""
    raise SystemExit(128 + signal_number)

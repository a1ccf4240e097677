"""Folders and files that appear whole or not at all; what is written is the caller's matter."""

import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
            # What is read meanwhile has a name of its own; what cannot be written is in the folder.
            elsewhere = error.filename if not _is_in(error.filename, partial) else None
            where = str(elsewhere) if elsewhere else f"cannot write {out}"
            raise EagleError(f"{where}: {error.strerror or error}") from error
        finally:
            if partial.exists():
                shutil.rmtree(partial)


@contextmanager
def new_file(file: Path, *, mode: int = 0o666, suffix: str | None = None) -> Iterator[Path]:
    """Yield an empty file that takes the place of `file` when the block ends without an exception.

    Until then it is a hidden sibling of `file`, and `file` stays as it was, or absent. It is
    removed on any failure.

    Args:
        file: what to write; its folder must exist.
        mode: who may read it, less what the umask forbids.
        suffix: ending of the hidden file's name, which some writers insist on; None for that of
            `file`.

    Raises:
        OSError: if it cannot be written.
    """
    ending = file.suffix if suffix is None else suffix
    partial = file.parent / f".{secrets.token_hex(8)}.partial{ending}"
    try:
        partial.touch(mode=mode)
        yield partial
        _flush_file(partial)
        os.replace(partial, file)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _is_in(name: object, folder: Path) -> bool:
    """Say whether an error is about something of a folder, or about nothing that has a name."""
    if not isinstance(name, str | os.PathLike):
        return True
    return folder in (path := Path(os.path.abspath(name))).parents or path == folder


def _refuse_existing(out: Path) -> None:
    """Raise if there is anything at `out`, a dangling link included."""
    if os.path.lexists(out):
        raise EagleError(
            f"{out} exists and is never overwritten: choose another folder, or remove it first"
        )


def _flush(folder: Path) -> None:
    """Wait until every file of a folder is on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            _flush_file(file)


def _flush_file(file: Path) -> None:
    """Wait until a file is on the disk: a power cut after the rename must not empty it."""
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

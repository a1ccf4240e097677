"""The folder with rows of prompts: what is in it, what is let go first, and who writes there.

Processes share it; the rows of each target and head have a folder of their own in it, in which one
process writes. What that one has not written to its end, no other one touches.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from mlx_eagle.files.folders import cache_folder

SUFFIX = ".safetensors"
FREE_SHARE = 0.1  # of the disk, which stays free
LOCK = "rows.lock"  # is held by the one process that writes


class RowsFile(NamedTuple):
    """One file: its bytes, when it was last used (nanoseconds), and where it is."""

    n_bytes: int
    used: int
    path: Path


class Room(NamedTuple):
    """How room is made on a disk.

    Attributes:
        doomed: the files that must go; None where all of them would not do.
        is_full: whether that is for want of room on the disk, which others may have filled.
    """

    doomed: list[RowsFile] | None
    is_full: bool


def prefix_folder() -> Path:
    """Return where the rows of prompts are kept."""
    return cache_folder() / "prefix"


def whole_files(folder: Path) -> list[RowsFile]:
    """Return the files that were written to their end, of all targets and heads."""
    found = []
    for path in folder.glob(f"*/*/*{SUFFIX}"):
        with suppress(OSError):
            about = path.stat()
            if not is_partial(path):
                found.append(RowsFile(about.st_size, about.st_mtime_ns, path))
    return found


def is_partial(path: Path) -> bool:
    """Say whether a file is being written, or was when its process ended."""
    return ".partial" in path.name


def list_folder(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what a folder of rows holds: files and bytes, by the name of what computed them."""
    found: dict[str, tuple[int, int]] = {}
    for size, _, path in whole_files(folder):
        name = path.parent.parent.name
        n_files, n_bytes = found.get(name, (0, 0))
        found[name] = (n_files + 1, n_bytes + size)
    return found


def clear_folder(folder: Path) -> int:
    """Remove all rows in a folder, but what a process is writing; returns how many bytes."""
    total = 0
    for own in _own_folders(folder):
        with _held(own) as is_mine:
            total += remove_rows(own, with_partial=is_mine)
    return total


def remove_rows(own: Path, *, with_partial: bool) -> int:
    """Remove the rows of one target and head; returns how many bytes that were.

    Args:
        own: their folder.
        with_partial: whether nobody writes there, so that what is not whole is left over.
    """
    total = 0
    for path in own.glob(f"*/*{SUFFIX}"):
        if with_partial or not is_partial(path):
            with suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                total += size
    return total


def is_written(folder: Path) -> bool:
    """Say whether a process runs that writes rows into a folder."""
    for own in _own_folders(folder):
        with _held(own) as is_mine:
            if not is_mine:
                return True
    return False


def _own_folders(folder: Path) -> list[Path]:
    return [own for own in folder.glob("*") if own.is_dir()]


@contextmanager
def _held(own: Path) -> Iterator[bool]:
    """Hold the right to write into a folder for a while; yields whether it was to be had."""
    lock = None
    with suppress(OSError):
        lock = try_lock(own)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def make_room(folder: Path, n_bytes: int, max_bytes: int, spared: Collection[Path] = ()) -> Room:
    """Return which files must go before another one is written, those used longest ago first.

    Args:
        folder: of all rows.
        n_bytes: of the new file.
        max_bytes: that all files may have.
        spared: files that stay.
    """
    files = whole_files(folder)
    usage = shutil.disk_usage(folder)
    excess = sum(file.n_bytes for file in files) + n_bytes - max_bytes
    short = int(usage.total * FREE_SHARE) + n_bytes - usage.free
    others = sorted((f for f in files if f.path not in spared), key=lambda file: file.used)
    doomed = _oldest(others, max(excess, short))
    return Room(doomed, short > max(excess, 0))


def _oldest(files: Iterable[RowsFile], n_bytes: int) -> list[RowsFile] | None:
    """Return the first files that have so many bytes together; None if all have fewer."""
    doomed = list[RowsFile]()
    for file in files:
        if n_bytes <= 0:
            break
        doomed.append(file)
        n_bytes -= file.n_bytes
    return doomed if n_bytes <= 0 else None


def try_lock(own: Path) -> IO[str] | None:
    """Return the right to write into a folder, which closing gives back; None if it is taken."""
    file = (own / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

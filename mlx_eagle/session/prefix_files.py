"""Rows of prompts on disk, in blocks of tokens that a chain of hashes names.

A block's name depends on all tokens before it and on everything that computed its rows, so equal
names mean equal rows. Tokens are stored all the same and compared, and what does not fit (a size, a
checksum, a token) is removed and counted, never used. Only layers that hold a row per token can be
cut into blocks; other caches are not written.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.files.safetensors import read_header

if TYPE_CHECKING:
    from mlx_eagle.session.prefix import CachedPrefix

BLOCK = 256  # tokens
MOST_BLOCKS = 16  # of a file
LEAST_BLOCKS = 4  # of a prefix that is worth a file
FORMAT, VERSION = "mlx-eagle prefix", "1"
TOKENS = "tokens"
SUFFIX = ".safetensors"
FREE_SHARE = 0.1  # of the disk, which stays free
KEPT = "rows.lock"  # is held by the one process that writes


class Segment(NamedTuple):
    """One file: `n_blocks` blocks from block `first` of a chain on.

    Attributes:
        path: of the file.
        first: how many blocks of the chain come before.
        hashes: of the blocks.
    """

    path: Path
    first: int
    hashes: list[str]


class PrefixFiles:
    """The rows on disk of one target with one head.

    Args:
        folder: of all such rows; made if it is not there.
        identity: what computed the rows, by what it is of.
        max_bytes: of all files in the folder, those of other targets included.
        salt: rows are found with the same one alone.

    Attributes:
        n_damaged: files that were removed because something was wrong with them.
        n_interrupted: of the start: files that an earlier run had not written to their end.
        n_evicted: files that were removed for want of room.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, str], max_bytes: int, salt: str = ""
    ) -> None:
        facts = {**identity, "mlx": metadata.version("mlx"), "version": VERSION, "salt": salt}
        self._root = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._all, self._own = folder, folder / self._root[:16]
        self._max_bytes = max_bytes
        self.n_damaged = self.n_interrupted = self.n_evicted = 0
        self._by_hash: dict[str, Segment] = {}
        self._lock: IO[str] | None = None
        try:
            self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _try_lock(self._own / KEPT)
        except OSError as error:
            raise EagleError(f"cannot keep rows in {folder}: {error.strerror or error}") from error
        self._scan()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes; others only read."""
        return self._lock is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(size for size, _, _ in _files(self._all))

    def longest(self, ids: Sequence[int], salt: str = "") -> int:
        """Return how many tokens of a prompt there are rows of.

        Args:
            ids: the prompt.
            salt: of the conversation, see `CachedPrefix.salt`.
        """
        return len(self._chain(ids, salt)) * BLOCK

    def load(self, prefix: "CachedPrefix", ids: Sequence[int]) -> bool:
        """Let a prefix hold the rows that there are of a prompt; returns whether it does."""
        hashes = self._chain(ids, prefix.salt)
        while hashes:
            parts = self._read(hashes, ids)
            if parts is not None:
                rows = len(hashes) * BLOCK
                with suppress(ValueError, KeyError, TypeError):
                    n_head = rows if prefix.has_own_rows else 0
                    prefix.restore(list(ids[:rows]), _joined(parts), rows, n_head)
                    prefix.n_read = rows  # matters where files hold nothing else
                    self._touch(hashes)
                    return True
                prefix.reset()
                for path in {self._by_hash[name].path for name in hashes}:
                    self._drop(path)
            hashes = self._chain(ids, prefix.salt)
        return False

    def write(self, prefix: "CachedPrefix", n_rows: int) -> None:
        """Write the blocks of a prefix's first rows that are not there yet, where that is possible.

        Args:
            prefix: of a conversation.
            n_rows: that may be used again.
        """
        if not self.writes or not prefix.is_pageable:
            return
        n_blocks = min(n_rows, prefix.head_limit) // BLOCK
        n_blocks = min(n_blocks, len(prefix.tokens) // BLOCK)
        hashes = self._hashes(prefix.tokens[: n_blocks * BLOCK], prefix.salt)
        first = next((i for i, name in enumerate(hashes) if name not in self._by_hash), n_blocks)
        if n_blocks < LEAST_BLOCKS or first == n_blocks:
            return
        arrays = prefix.arrays()
        with suppress(OSError, RuntimeError):
            for start in range(first, n_blocks, MOST_BLOCKS):
                end = min(start + MOST_BLOCKS, n_blocks)
                self._write(prefix.tokens, arrays, hashes, slice(start, end))
            self._touch(hashes)
            self._evict()

    def clear(self) -> None:
        """Remove the rows of this target and head."""
        for path in {segment.path for segment in self._by_hash.values()}:
            self._remove(path)

    def _hashes(self, ids: Sequence[int], salt: str) -> list[str]:
        """Return the names of the whole blocks of some tokens, as clients with a salt find them."""
        names, name = list[str](), self._root + salt
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            tokens = np.array(ids[start : start + BLOCK], dtype="<i4").tobytes()
            name = hashlib.sha256(name.encode() + tokens).hexdigest()
            names.append(name)
        return names

    def _chain(self, ids: Sequence[int], salt: str) -> list[str]:
        """Return the names of the first blocks of a prompt, as far as all of them are there."""
        names = self._hashes(ids, salt)
        n_known = next((i for i, name in enumerate(names) if name not in self._by_hash), len(names))
        return names[:n_known]

    # Files

    def _scan(self) -> None:
        """Find the files; the one that writes removes what an interrupted one has left."""
        for path in sorted(self._own.glob("*/*")):
            if ".partial" in path.name:
                if self.writes:
                    path.unlink(missing_ok=True)
                    self.n_interrupted += 1
            elif path.suffix == SUFFIX and (segment := self._described(path)) is not None:
                self._by_hash |= dict.fromkeys(segment.hashes, segment)

    def _described(self, path: Path) -> Segment | None:
        """Return what a file says that it holds."""
        try:
            read_header(path)
            about = _metadata(path)
            if about.get("format") != FORMAT or about.get("root") != self._root:
                raise ValueError("of something else")
            return Segment(path, int(about["first"]), about["hashes"].split())
        except (EagleError, ValueError, KeyError, RuntimeError, OSError):
            self._drop(path)
            return None

    def _read(self, hashes: list[str], ids: Sequence[int]) -> list[dict[str, mx.array]] | None:
        """Return the arrays of blocks, file by file; None where one is damaged, and removed."""
        parts, place = list[dict[str, mx.array]](), 0
        while place < len(hashes):
            segment = self._by_hash[hashes[place]]
            end = min(segment.first + len(segment.hashes), len(hashes))
            arrays = self._checked(segment, ids[segment.first * BLOCK : end * BLOCK])
            if arrays is None or segment.first > place:
                self._drop(segment.path)
                return None
            rows = slice((place - segment.first) * BLOCK, (end - segment.first) * BLOCK)
            parts.append({name: array[:, :, rows] for name, array in arrays.items()})
            place = end
        return parts

    def _checked(self, segment: Segment, ids: Sequence[int]) -> dict[str, mx.array] | None:
        """Return the arrays of a file, if they are what was written and begin with these tokens."""
        try:
            loaded = mx.load(str(segment.path), format="safetensors", return_metadata=True)
            arrays, about = cast(tuple[dict[str, mx.array], dict[str, str]], loaded)
            if _checksum(arrays) != about.get("crc32"):
                return None
        except (RuntimeError, ValueError, OSError):
            return None
        held = arrays.pop(TOKENS, None)
        if held is None or held.shape != (len(segment.hashes) * BLOCK,):
            return None
        tokens = cast(list[int], held.tolist())
        return arrays if tokens[: len(ids)] == list(ids) else None

    def _write(
        self,
        tokens: Sequence[int],
        arrays: Mapping[str, mx.array],
        hashes: list[str],
        blocks: slice,
    ) -> None:
        """Write one file with some blocks."""
        rows = slice(blocks.start * BLOCK, blocks.stop * BLOCK)
        own = {name: mx.contiguous(array[:, :, rows]) for name, array in arrays.items()}
        own[TOKENS] = mx.array(list(tokens[rows]), dtype=mx.int32)
        mx.eval(own)
        names = hashes[blocks]
        about = {"format": FORMAT, "version": VERSION, "root": self._root}
        about |= {"first": str(blocks.start), "hashes": " ".join(names), "crc32": _checksum(own)}
        folder = self._own / names[-1][:2]
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{names[-1]}{SUFFIX}"
        with new_file(path, mode=0o600, suffix=SUFFIX) as partial:
            mx.save_safetensors(str(partial), own, about)
        _flush_folder(folder)
        segment = Segment(path, blocks.start, names)
        self._by_hash |= dict.fromkeys(names, segment)

    def _touch(self, hashes: list[str]) -> None:
        """Note that blocks are in use; what others go on from comes last where room is wanted."""
        paths = list(dict.fromkeys(self._by_hash[name].path for name in hashes))
        now = time.time_ns()
        for place, path in enumerate(reversed(paths)):
            with suppress(OSError):
                os.utime(path, ns=(now, now + place))

    def _evict(self) -> None:
        """Remove the files that were used longest ago until the rest is small enough."""
        files = sorted(_files(self._all), key=lambda file: file[1])
        usage = shutil.disk_usage(self._all)
        total = sum(size for size, _, _ in files)
        surplus = max(total - self._max_bytes, int(usage.total * FREE_SHARE) - usage.free)
        for size, _, path in files:
            if surplus <= 0:
                return
            surplus -= size
            self.n_evicted += 1
            self._remove(path)

    def _drop(self, path: Path) -> None:
        """Remove a file with which something is wrong."""
        self.n_damaged += 1
        self._remove(path)

    def _remove(self, path: Path) -> None:
        self._by_hash = {name: s for name, s in self._by_hash.items() if s.path != path}
        with suppress(OSError):
            path.unlink()


def prefix_folder() -> Path:
    """Return where the rows of prompts are kept."""
    return cache_folder() / "prefix"


def list_folder(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what a folder of rows holds: files and bytes, by the name of what computed them."""
    found: dict[str, tuple[int, int]] = {}
    for size, _, path in _files(folder):
        name = path.parent.parent.name
        n_files, n_bytes = found.get(name, (0, 0))
        found[name] = (n_files + 1, n_bytes + size)
    return found


def clear_folder(folder: Path) -> int:
    """Remove all rows in a folder; returns how many bytes that were."""
    total = 0
    for size, _, path in _files(folder):
        with suppress(OSError):
            path.unlink()
            total += size
    return total


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """Return size, time of the last use (nanoseconds), and path of every file with rows."""
    found = []
    for path in folder.glob(f"*/*/*{SUFFIX}"):
        with suppress(OSError):
            about = path.stat()
            found.append((about.st_size, about.st_mtime_ns, path))
    return found


def _metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself, without reading its tensors."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(n_header))
    about = header.get("__metadata__", {})
    return cast(dict[str, str], about)


def _joined(parts: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
    """Return arrays whose rows come one after another."""
    return {name: mx.concatenate([part[name] for part in parts], axis=2) for name in parts[0]}


def _checksum(arrays: Mapping[str, mx.array]) -> str:
    """Return the CRC-32 of all arrays in the order of their names."""
    crc = 0
    for _, array in sorted(arrays.items()):
        crc = zlib.crc32(np.array(array.reshape(-1).view(mx.uint8)).data, crc)
    return f"{crc:08x}"


def _try_lock(path: Path) -> IO[str] | None:
    """Return a lock that is held until it is closed; None if another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

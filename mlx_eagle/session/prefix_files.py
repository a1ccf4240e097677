"""Rows of prompts on disk, in blocks of tokens that a chain of hashes names.

A block's name depends on all tokens before it and on everything that computed its rows, so equal
names mean equal rows. Tokens are stored all the same and compared, and what does not fit (a size, a
checksum, a token) is removed and counted, never used. Only layers that hold a row per token can be
cut into blocks; other caches are not written.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.quoting import one_line
from mlx_eagle.files.safetensors import checksum, read_header
from mlx_eagle.session.rows_folder import (
    FREE_SHARE,
    SUFFIX,
    flush_folder,
    is_partial,
    make_room,
    remove_rows,
    try_lock,
    whole_files,
)

if TYPE_CHECKING:
    from mlx_eagle.session.prefix import CachedPrefix

BLOCK = 256  # tokens
MOST_BLOCKS = 16  # of a file
LEAST_BLOCKS = 4  # of a prefix that is worth a file
FORMAT, VERSION = "mlx-eagle prefix", "2"
TOKENS = "tokens"
BARE = " without a head"  # after the salt: of rows of the target alone, where nothing was drafted
TENSOR_BYTES, BLOCK_BYTES = 256, 80  # at most, of what a header says of one


class Segment(NamedTuple):
    """One file: `n_blocks` blocks from block `first` of a chain on.

    Attributes:
        path: of the file.
        first: how many blocks of the chain come before.
        hashes: of the blocks.
        owner: tells whose rows they are, where clients have salts.
        n_bytes: of the file.
    """

    path: Path
    first: int
    hashes: list[str]
    owner: str
    n_bytes: int


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
        # Other devices round otherwise, and so do other versions of what computes.
        facts = {**identity, "version": VERSION, "salt": salt}
        self._root = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._all, self._own = folder, folder / self._root[:16]
        self._max_bytes = max_bytes
        self.n_damaged = self.n_interrupted = self.n_evicted = 0
        self._by_hash: dict[str, Segment] = {}
        self._note = self._last_note = ""
        self._is_troubled = False  # by what happened to the newest rows
        self._lock: IO[str] | None = None
        try:
            self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = try_lock(self._own)
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
        return sum(file.n_bytes for file in whole_files(self._all))

    def longest(self, ids: Sequence[int], salt: str = "") -> int:
        """Return how many tokens of a prompt there are rows of.

        Args:
            ids: the prompt.
            salt: of the conversation, see `CachedPrefix.salt`, and `BARE`.
        """
        return len(self._chain(ids, salt)) * BLOCK

    def load(self, prefix: "CachedPrefix", ids: Sequence[int], end: str = "") -> bool:
        """Let a prefix hold the rows that there are of a prompt; returns whether it does.

        Args:
            prefix: of a conversation; filled.
            ids: the prompt.
            end: "", or `BARE` for rows of the target alone.
        """
        hashes = self._chain(ids, prefix.salt + end)
        while hashes:
            parts = self._read(hashes, ids)
            if parts is not None:
                rows = len(hashes) * BLOCK
                with suppress(ValueError, KeyError, TypeError):
                    n_head = rows if prefix.has_own_rows and not end else 0
                    prefix.restore(list(ids[:rows]), _joined(parts), rows, n_head)
                    prefix.n_read = rows  # matters where files hold nothing else
                    self._touch(hashes)
                    return True
                prefix.reset()
                for path in {self._by_hash[name].path for name in hashes}:
                    self._drop(path)
            hashes = self._chain(ids, prefix.salt + end)
        return False

    def write(self, prefix: "CachedPrefix", n_rows: int) -> None:
        """Write the blocks of a prefix's first rows that are not there yet, where that is possible.

        Args:
            prefix: of a conversation.
            n_rows: that may be used again.
        """
        if not self.writes or not prefix.is_pageable:
            return
        is_bare = not prefix.head_limit  # nothing was drafted, and may not be the next time either
        limit = prefix.cache.rows if is_bare else prefix.head_limit
        n_blocks = min(n_rows, limit, len(prefix.tokens)) // BLOCK
        salt = prefix.salt + (BARE if is_bare else "")
        hashes = self._hashes(prefix.tokens[: n_blocks * BLOCK], salt)
        first = self._n_known(hashes)
        if n_blocks < LEAST_BLOCKS or first == n_blocks:
            return
        self._is_troubled = False
        self._touch(hashes[:first])
        try:
            arrays, start = prefix.arrays(with_head=not is_bare), first
            while start < n_blocks and self._make_room(arrays, hashes, start):
                blocks = slice(start, min(start + MOST_BLOCKS, n_blocks))
                self._write(prefix, arrays, hashes, blocks)
                start = blocks.stop
            self._touch(hashes[:start])
            if not self._is_troubled:
                self._last_note = ""  # what comes next is new
        except (OSError, RuntimeError) as error:
            reason = one_line(getattr(error, "strerror", None) or error)
            self._say(f"rows of prompts could not be written to {self._all}: {reason}")

    def take_note(self) -> str:
        """Return what its user should know of the disk, "" for nothing new; it is said once."""
        note, self._note = self._note, ""
        return note

    def held(self, salt: str) -> int:
        """Return the bytes of what conversations with a salt can find; from any thread."""
        owner, segments = self._owner(salt), list(self._by_hash.values())
        sizes = {segment.path: segment.n_bytes for segment in segments if segment.owner == owner}
        return sum(sizes.values())

    def clear(self, salt: str = "") -> None:
        """Remove the rows of this target and head.

        Args:
            salt: removes what its conversations alone can find; "" removes all.
        """
        if not salt:
            self._by_hash.clear()
            remove_rows(self._own, with_partial=self.writes)
            return
        self._scan()
        owner = self._owner(salt)
        for path in {s.path for s in self._by_hash.values() if s.owner == owner}:
            self._remove(path)

    def _owner(self, salt: str) -> str:
        return hashlib.sha256(f"{self._root} {salt}".encode()).hexdigest()[:16]

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
        return names[: self._n_known(names)]

    def _n_known(self, names: Sequence[str]) -> int:
        """Return how many of the first blocks are there; what other processes removed is not."""
        n_known = next((i for i, name in enumerate(names) if name not in self._by_hash), len(names))
        for path in dict.fromkeys(self._by_hash[name].path for name in names[:n_known]):
            if not path.exists():
                self._forget(path)
                return self._n_known(names)
        return n_known

    # Files

    def _scan(self) -> None:
        """Find the files; the one that writes removes what an interrupted one has left."""
        for path in sorted(self._own.glob("*/*")):
            if is_partial(path):
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
            first, hashes = int(about["first"]), about["hashes"].split()
            return Segment(path, first, hashes, about["owner"], path.stat().st_size)
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
            if checksum(arrays) != about.get("crc32"):
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
        prefix: "CachedPrefix",
        arrays: Mapping[str, mx.array],
        hashes: list[str],
        blocks: slice,
    ) -> None:
        """Write one file with some blocks."""
        rows = slice(blocks.start * BLOCK, blocks.stop * BLOCK)
        own = {name: mx.contiguous(array[:, :, rows]) for name, array in arrays.items()}
        own[TOKENS] = mx.array(prefix.tokens[rows], dtype=mx.int32)
        mx.eval(own)
        names = hashes[blocks]
        owner = self._owner(prefix.salt)
        about = {"format": FORMAT, "version": VERSION, "root": self._root, "owner": owner}
        about |= {"first": str(blocks.start), "hashes": " ".join(names), "crc32": checksum(own)}
        folder = self._own / names[-1][:2]
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{names[-1]}{SUFFIX}"
        with new_file(path, mode=0o600, suffix=SUFFIX) as partial:
            mx.save_safetensors(str(partial), own, about)
        flush_folder(folder)
        segment = Segment(path, blocks.start, names, owner, path.stat().st_size)
        self._by_hash |= dict.fromkeys(names, segment)

    def _touch(self, hashes: list[str]) -> None:
        """Note that blocks are in use; what others go on from comes last where room is wanted."""
        paths = list(dict.fromkeys(self._by_hash[name].path for name in hashes))
        now = time.time_ns()
        for place, path in enumerate(reversed(paths)):
            with suppress(OSError):
                os.utime(path, ns=(now, now + place))

    def _make_room(self, arrays: Mapping[str, mx.array], hashes: list[str], start: int) -> bool:
        """Remove the files that were used longest ago until the next file fits, if one can.

        Args:
            arrays: of the prefix whose blocks are written.
            hashes: of the blocks; the files of those before `start` stay.
            start: the first block of the next file.
        """
        n_blocks = min(MOST_BLOCKS, len(hashes) - start)
        row_bytes = sum(array.nbytes // array.shape[2] for array in arrays.values()) + 4
        n_bytes = n_blocks * (BLOCK * row_bytes + BLOCK_BYTES) + TENSOR_BYTES * (len(arrays) + 2)
        spared = {self._by_hash[name].path for name in hashes[:start]}
        room = make_room(self._all, n_bytes, self._max_bytes, spared)
        for file in room.doomed or ():
            self.n_evicted += 1
            self._remove(file.path)
        little = f"less than {FREE_SHARE:.0%} of the disk of {self._all} is free"
        if room.doomed is None and room.is_full:
            self._say(f"{little}: rows of prompts are not written there")
        elif room.is_full and room.doomed:
            self._say(f"{little}: the oldest rows of prompts there were removed")
        return room.doomed is not None

    def _say(self, note: str) -> None:
        """Let its user know something, unless it was said already and has not ended since."""
        self._is_troubled = True
        if note != self._last_note:
            self._note = self._last_note = note

    def _drop(self, path: Path) -> None:
        """Remove a file with which something is wrong."""
        self.n_damaged += 1
        self._remove(path)

    def _forget(self, path: Path) -> None:
        self._by_hash = {name: s for name, s in self._by_hash.items() if s.path != path}

    def _remove(self, path: Path) -> None:
        self._forget(path)
        with suppress(OSError):
            path.unlink()


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

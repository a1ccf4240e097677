"""Rows of earlier prompts and answers, kept for later ones that begin alike.

Conversations hold their own rows (`prefix.py`). What is kept here belongs to none: rows of requests
that are over, in memory, the oldest forgotten first; and, where a folder was given, in files that
later runs read (`prefix_files.py`). It is used on the engine's thread alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from mlx_eagle.session.prefix_files import BARE, PrefixFiles

if TYPE_CHECKING:
    from mlx_eagle.session.prefix import CachedPrefix

SHORT = 1024  # rows; no more are forgotten for a prompt that leaves a conversation
EXACT = " exact"  # in the salt of files that hold rows of prefill alone
STEP = 512  # tokens per forward of prefill where rows must be exact
LEAST_GAIN = 16  # rows; for fewer nothing is looked for


class Hit(NamedTuple):
    """What was found for a prompt: rows, and where: "memory", "disk", or "" where nothing was."""

    rows: int = 0
    tier: str = ""


class PrefixCache:
    """The rows that an engine keeps between conversations.

    Args:
        max_bytes: of the rows in memory.
        files: of rows on disk; None keeps none there.
        is_exact: whether prompts use only rows that reading them anew would give to the last bit.

    Attributes:
        step: tokens per forward of prefill, whose whole chunks alone are used again; 0: all rows.
        n_evicted: prefixes that were forgotten for want of room.
        nbytes: of the rows in memory; may be read from any thread.
    """

    def __init__(
        self, max_bytes: int, files: PrefixFiles | None = None, *, is_exact: bool = False
    ) -> None:
        self._max_bytes, self.files = max_bytes, files
        self.step = STEP if is_exact else 0
        self._kept: list[CachedPrefix] = []  # the one that was used last comes last
        self._sizes: list[tuple[str, int]] = []  # of them, each with its salt
        self.n_evicted = self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def fill(self, prefix: "CachedPrefix", ids: Sequence[int], *, speculate: bool) -> Hit:
        """Let a prefix hold the rows that are kept of a prompt, if those are more than its own.

        Args:
            prefix: of a conversation; filled.
            ids: the prompt.
            speculate: whether the head's rows are needed too.
        """
        least = prefix.reusable(ids, speculate) + LEAST_GAIN
        own = [kept for kept in self._kept if kept.salt == prefix.salt]
        best = max(own, key=lambda kept: kept.reusable(ids, speculate), default=None)
        rows = best.reusable(ids, speculate) if best is not None else 0
        if self._read(prefix, ids, max(least, rows + LEAST_GAIN), speculate):
            return Hit(prefix.reusable(ids, speculate), "disk")
        if best is None or rows < least:
            return Hit()
        prefix.become(self._taken(best, rows))
        self._shrink(self._max_bytes)
        return Hit(rows, "memory")

    def _read(
        self, prefix: "CachedPrefix", ids: Sequence[int], least: int, speculate: bool
    ) -> bool:
        """Let a prefix hold the rows of a prompt that are on disk, if they are so many at least."""
        files = self.files
        if files is None:
            return False
        ends = ("",) if speculate else ("", BARE)
        found = {end: files.longest(ids, prefix.salt + end) - 1 for end in ends}
        end = max(ends, key=lambda end: found[end])
        return found[end] >= least and files.load(prefix, ids, end)

    def _taken(self, best: "CachedPrefix", rows: int) -> "CachedPrefix":
        """Take out a prefix of which so many rows are used, or a copy where others may want it.

        Two conversations may begin alike, so what one does not use is kept for the other. Few rows
        may as well be thoughts that a template has left out; they stay while there is room.
        """
        n_left = len(best.tokens) - rows
        self._kept.remove(best)
        if n_left > SHORT:
            self._kept.append(best)
        elif n_left > LEAST_GAIN and self.nbytes + best.nbytes <= self._max_bytes:
            self._kept.insert(0, best)  # the first to go
        else:
            return best
        return best.fork()

    def keep(self, prefix: "CachedPrefix") -> None:
        """Keep the rows of a conversation that is over, in memory and on disk."""
        self.write(prefix)
        if not self._max_bytes or not prefix.is_reusable:
            return
        self._kept = [kept for kept in self._kept if not _begins(kept, prefix)]
        self._kept.append(prefix)
        self._shrink(self._max_bytes)

    def write(self, prefix: "CachedPrefix") -> None:
        """Write what is new of a conversation's rows to disk, if any are kept there."""
        if self.files is not None:
            self.files.write(prefix, prefix.n_read if self.step else prefix.cache.rows)

    def held(self, salt: str = "") -> tuple[int, int]:
        """Return how many prefixes are kept in memory, and their bytes; from any thread.

        Args:
            salt: counts what its conversations alone can find; "" counts all.
        """
        sizes = [size for own, size in self._sizes if salt in ("", own)]
        return len(sizes), sum(sizes)

    def clear(self, salt: str = "") -> None:
        """Forget everything, on disk too.

        Args:
            salt: forgets what its conversations alone can find; "" forgets all.
        """
        self._kept = [kept for kept in self._kept if salt not in ("", kept.salt)]
        self._shrink(self._max_bytes)
        if self.files is not None:
            self.files.clear(salt)
        mx.clear_cache()

    def make_room(self, n_bytes: int) -> None:
        """Forget the oldest until so many bytes more are free, or nothing is kept."""
        self._shrink(max(self.nbytes - max(n_bytes, 0), 0))

    def _shrink(self, goal: int) -> None:
        """Forget the oldest until the rest has `goal` bytes at most."""
        sizes = [(prefix.salt, prefix.nbytes) for prefix in self._kept]
        total, n_before = sum(size for _, size in sizes), len(sizes)
        while total > goal:
            total -= sizes.pop(0)[1]
            self._kept.pop(0)
            self.n_evicted += 1
        self._sizes, self.nbytes = sizes, total
        if len(sizes) < n_before:
            mx.clear_cache()


def _begins(kept: "CachedPrefix", prefix: "CachedPrefix") -> bool:
    """Say whether all that is kept is the beginning of a longer prefix, which serves as well."""
    n = len(kept.tokens)
    if kept.salt != prefix.salt:
        return False
    return n <= len(prefix.tokens) and prefix.tokens[:n] == kept.tokens and prefix.is_pageable

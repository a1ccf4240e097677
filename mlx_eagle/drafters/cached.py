"""What drafters whose heads attend to what was committed have in common: a cache of it."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

import mlx.core as mx

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.mtp import MtpHead
from mlx_eagle.target.target import Target

PIECE = 512  # rows of a prompt that a head with a window observes at a time


class CachedDrafter:
    """A head, the embedding and output layer that it may share, and its own KV cache.

    `window` is that of `EagleHead.make_cache`. The cache holds one row per observed token. What a
    tree is drafted from came with the newest of them, and is not there once that is forgotten.
    """

    head: Any
    _newest: Any = None  # what is drafted from

    def __init__(
        self, head: EagleHead | BlockHead, target: Target, window: int | None = None
    ) -> None:
        self.head = head
        self.embed = head.embed_tokens if head.config.own_embedding else target.embedding
        self.unembed = head.lm_head if head.config.own_lm_head else _borrowed_output(head, target)
        self.cache = _empty_cache(head, target, window)
        self._most_rows = min(window, PIECE) if window else None  # observed in one forward

    @property
    def max_width(self) -> int:
        """The draft vocabulary."""
        return int(self.head.config.draft_vocab_size)

    @property
    def max_depth(self) -> int:
        """Levels that the head can draft."""
        return int(self.head.max_depth)

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return self.cache.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the head's KV cache."""
        return self.cache.nbytes

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the head must be up to date."""
        return self.cache.buffers

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""
        if rows < self.rows:
            self._newest = None
        self.cache.trim(rows)

    def fork(self) -> Self:
        """Return a copy that shares the rows held so far."""
        twin = copy.copy(self)
        twin.cache = self.cache.fork()
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return the rows of the head's cache; what it drafts from comes with the next token."""
        return self.cache.arrays()

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens."""
        self._newest = None
        self.cache.restore(arrays, rows)

    def _pieces(self, n: int) -> Iterator[slice]:
        """Yield n rows in pieces that the cache takes at a time."""
        step = self._most_rows or n
        yield from (slice(start, min(start + step, n)) for start in range(0, n, step))


def _empty_cache(head: EagleHead | BlockHead, target: Target, window: int | None) -> TreeCache:
    """Return an empty cache of a head; a layer of the target keeps what the target's layers do."""
    if isinstance(head, MtpHead):
        return head.make_cache(window, target.kv)
    return head.make_cache(window)


def _borrowed_output(head: EagleHead | BlockHead, target: Target) -> Callable[[mx.array], mx.array]:
    """Return the target's output layer, or its rows for the tokens that the head may draft."""
    if head.config.draft_vocab_size == head.config.target_vocab_size:
        return target.unembed
    return target.output_rows(head.draft_to_target)

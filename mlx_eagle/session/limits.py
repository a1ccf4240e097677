"""How many tokens a conversation may have, by the model's context length and by memory.

A limit is told beforehand. A prompt beyond it is refused, or its oldest turns are left out if that
was asked for; an answer that reaches it ends there and says so.
"""

from bisect import bisect_right
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.stock import StockCache
from mlx_eagle.drafters.base import ReadsText
from mlx_eagle.drafters.make import make_drafter, own_cache
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.target.target import Target

UNBOUNDED = 1 << 40  # rows


class Budget(NamedTuple):
    """Tokens that a conversation may have, prompt and answer together, and why not more."""

    tokens: int
    reason: str

    def check(self, n_tokens: int, can_drop: bool) -> None:
        """Refuse a prompt after which no token of an answer would fit.

        Args:
            n_tokens: of the prompt.
            can_drop: whether turns could be left out, and were not asked to be.

        Raises:
            EagleError: saying what is full and what helps.
        """
        if n_tokens >= self.tokens:
            remedy = "shorten it or start anew"
            if can_drop:
                remedy += ", or leave out the oldest turns (overflow: truncate)"
            raise EagleError(f"the prompt has {n_tokens} tokens, but {self.reason}; {remedy}")


class Limits(NamedTuple):
    """What bounds the conversations of an engine.

    Attributes:
        max_context: tokens; None where the model does not say.
        memory: bytes that the process may use on the device.
        bytes_per_row: by layer of the caches of the target and of what drafts, the bytes of a row
            and the most rows that it keeps (None: all); empty where it is not known.
        head_window: tokens that the head attends to; 0 for all.
    """

    max_context: int | None = None
    memory: int | None = None
    bytes_per_row: tuple[tuple[int, int | None], ...] = ()
    head_window: int = 0

    def cache_bytes(self, rows: int) -> int:
        """Return what so many rows take in these caches."""
        return sum(
            size * (rows if most is None else min(rows, most)) for size, most in self.bytes_per_row
        )

    def budget(self, held_rows: int, spare_bytes: int = 0) -> Budget | None:
        """Return how many tokens a conversation may have; None if nothing bounds it.

        Args:
            held_rows: rows that its cache holds already, and shares with no other.
            spare_bytes: that are in use, and given up where they are needed.
        """
        budgets = []
        if self.max_context is not None:
            full = f"the context of {self.max_context} tokens is full (max_context sets it)"
            budgets.append(Budget(self.max_context, full))
        if self.memory is not None and self.bytes_per_row:
            in_use = mx.get_active_memory() - spare_bytes
            free = max(self.memory - in_use, 0) + self.cache_bytes(held_rows)
            # The first number of rows that takes more than there is.
            tokens = bisect_right(range(UNBOUNDED), free, key=self.cache_bytes) - 1
            full = (
                f"the memory limit of {self.memory / 1e9:.3g} GB leaves room for {tokens} tokens "
                "(fewer bits in the KV cache leave more: kv_bits)"
            )
            if tokens < UNBOUNDED - 1:
                budgets.append(Budget(tokens, full))
        return min(budgets) if budgets else None


LayerSizes = tuple[tuple[int, int | None], ...]


def bytes_per_row(
    target: Target, head: AnyHead | None = None, head_window: int | None = None
) -> LayerSizes:
    """Return, by layer of all caches that grow, the bytes of a row and the most rows that it keeps.

    Recurrent states do not grow; for mlx-lm's own caches it is not known.

    Args:
        target: whose cache every conversation has.
        head: what drafts, and has a cache of its own in every conversation.
        head_window: tokens that it attends to; None or 0 for all.
    """
    cache, token = target.make_cache(), mx.array([0], dtype=mx.int32)
    if isinstance(cache, StockCache):
        return ()
    taps = target.extend(token, cache)  # never computed, nor are drafts: shapes suffice
    sizes = _layer_sizes(cache)
    if head is None:
        return sizes
    drafter = make_drafter(head, target, head_window)
    if isinstance(drafter, ReadsText):
        drafter.begin(token)
    drafter.observe(taps, token)
    of_head = own_cache(drafter)
    return sizes if of_head is None else (*sizes, *_layer_sizes(of_head))


def _layer_sizes(cache: TreeCache) -> LayerSizes:
    """Return the bytes of a row, and the most rows, of every layer of a cache of one row."""
    layers = [part for part in cache.parts if isinstance(part, KVCache)]
    return tuple((part.nbytes // part.step, part.most_rows) for part in layers)

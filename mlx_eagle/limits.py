"""How many tokens a conversation may have: what the model was made for, what the memory holds.

A limit is told beforehand. A prompt beyond it is refused, or its oldest turns are left out if that
was asked for; an answer that reaches it ends there and says so.
"""

import os
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.cache import KVCache
from mlx_eagle.convert.checkpoint import language_config
from mlx_eagle.errors import EagleError
from mlx_eagle.stock_cache import StockCache
from mlx_eagle.target import Target

SHARE = 0.75  # of the machine's memory, where the device does not say what it can use
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions")


class Room(NamedTuple):
    """Tokens that a conversation may have, prompt and answer together, and why not more."""

    tokens: int
    reason: str

    def check(self, n_tokens: int) -> None:
        """Refuse a prompt after which no token of an answer would fit.

        Raises:
            EagleError: saying what is full and what helps.
        """
        if n_tokens >= self.tokens:
            raise EagleError(
                f"the prompt has {n_tokens} tokens, but {self.reason}; shorten it, start anew, or "
                "leave out the oldest turns (overflow='truncate')"
            )


class Limits(NamedTuple):
    """What bounds the conversations of an engine.

    Attributes:
        max_context: tokens; None where the model does not say.
        memory: bytes that the process may use on the device.
        row_bytes: what a token takes in the target's cache, for good; 0 where it is not known.
    """

    max_context: int | None = None
    memory: int | None = None
    row_bytes: int = 0

    def room(self, held_rows: int) -> Room | None:
        """Return how many tokens a conversation may have; None if nothing bounds it.

        Args:
            held_rows: rows that its cache already has room for.
        """
        rooms = []
        if self.max_context is not None:
            full = f"the context of {self.max_context} tokens is full"
            rooms.append(Room(self.max_context, full))
        if self.memory is not None and self.row_bytes:
            free = max(self.memory - mx.get_active_memory(), 0)
            tokens = held_rows + free // self.row_bytes
            full = (
                f"the memory of {self.memory / 1e9:.1f} GB is full with {tokens} tokens "
                "(--kv-bits 8 takes half of that, --memory sets the limit)"
            )
            rooms.append(Room(tokens, full))
        return min(rooms) if rooms else None


def made_for(config: dict[str, Any]) -> int | None:
    """Return for how many tokens a target was made, by its config.json; None if it does not say."""
    known = language_config(config)
    sizes = [known[key] for key in CONTEXT_KEYS if type(known.get(key)) is int]
    return next((size for size in sizes if size > 0), None)


def device_memory() -> int:
    """Return the bytes that MLX can use without the machine swapping."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(recommended, int) and recommended > 0:
        return recommended
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def row_bytes(target: Target) -> int:
    """Return the bytes that every further token takes in a target's cache; 0 if not known.

    Layers with a window stop growing and are not counted.
    """
    cache = target.make_cache()
    if isinstance(cache, StockCache):
        return 0
    target.extend(mx.array([0]), cache)  # never computed: shapes suffice
    # Windows do not grow, nor do recurrent states, which are no KV caches.
    growing = [p for p in cache.parts if isinstance(p, KVCache) and not hasattr(p, "window")]
    return sum(part.nbytes // part.step for part in growing)

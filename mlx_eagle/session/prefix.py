"""What of a prompt is already cached: the tokens of a conversation and the rows computed from them.

A new prompt keeps the rows of the prefix that it shares with these tokens and forgets the rest. It
knows tokens and caches; messages and streams are in `session.py`.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

import mlx.core as mx

from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import AnyCache, TreeCache
from mlx_eagle.drafters.base import Drafter, ReadsText, Restorable
from mlx_eagle.drafters.make import own_cache
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.ngram import without_lookup
from mlx_eagle.session.prefix_cache import Hit
from mlx_eagle.speculation import ON

if TYPE_CHECKING:
    from mlx_eagle.calibration.planners import Planners
    from mlx_eagle.engine import Engine

TARGET, HEAD = "target.", "head."  # whose arrays they are, in a file
NO_TOKEN = -1  # stands for any that goes on with a text


class CachedPrefix:
    """Tokens and caches, kept in step.

    Args:
        engine: whose target and head they are of.

    Attributes:
        tokens: committed; the caches hold rows of all but the newest.
        cache: the target's.
        drafter: with the head's; None without a head.
        outlook: whether drafting could pay; once off it stays off, because the head no longer
            follows the tokens then.
        judged_by: the planners whose costs that is by; other ones judge anew.
        n_read: rows at the beginning that prefill has made, and not decoding.
        hit: what of the last prompt was found among what the engine keeps.
        salt: rows that the engine keeps are found by conversations with the same one alone.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.tokens: list[int]
        self.cache: AnyCache
        self.drafter: Drafter | None
        self.outlook = ON
        self.judged_by: Planners | None = None
        self.hit = Hit()
        self.salt = ""
        self._sharers = WeakSet[CachedPrefix]()  # who holds the same rows, itself too
        self.reset()

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self.cache.nbytes + (self.drafter.nbytes if self.drafter else 0)

    @property
    def is_shared(self) -> bool:
        """Whether a fork holds the same rows; the first to go on copies them."""
        return len(self._sharers) > 1

    def stand_alone(self) -> None:
        """Note that what is held was copied, or shared with nobody."""
        self._sharers.discard(self)
        self._sharers = WeakSet([self])

    def reset(self) -> None:
        """Start with empty caches."""
        self.tokens = []
        self.n_read = 0
        self.stand_alone()
        self.cache = self._engine.target.make_cache()
        self.drafter = self._new_drafter()

    @property
    def head_rows(self) -> int:
        """Rows of the head that `arrays` holds."""
        return self.drafter.rows if isinstance(self.drafter, Restorable) else 0

    def _new_drafter(self) -> Drafter | None:
        """Return a drafter that has observed nothing; None without a head."""
        return self._engine.make_drafter()

    def reuse(self, ids: Sequence[int], speculate: bool) -> None:
        """Go back to the rows that are held of the prompt `ids`, or to none.

        The newest shared token is run again: the head needs its taps once its next token changes.

        Args:
            ids: the new prompt.
            speculate: whether the head's rows are needed too.
        """
        kept = self._engine.prefix_cache
        if kept is not None:
            self.hit = kept.fill(self, ids, speculate=speculate)
        rows = self.reusable(ids, speculate)
        if rows == 0:
            self.reset()
        else:
            self._trim(rows)
        self.tokens = list(ids[: self.cache.rows])

    def reusable(self, ids: Sequence[int], speculate: bool) -> int:
        """Return how many rows are held of the prompt `ids`, and can be gone back to.

        Args:
            ids: the prompt.
            speculate: whether the head's rows are needed too.
        """
        rows = min(max(shared_tokens(self.tokens, ids) - 1, 0), self.cache.rows)
        if speculate and self.drafter is not None:
            rows = min(rows, self.drafter.rows)
        step = self._engine.prefix_cache.step if self._engine.prefix_cache is not None else 0
        if not step:
            return self.cache.longest_restorable_prefix(rows)
        rows = self.cache.longest_restorable_prefix(min(rows, self.n_read) // step * step)
        return rows if rows % step == 0 else 0

    @property
    def is_reusable(self) -> bool:
        """Whether a prompt that goes on from these tokens would find rows here."""
        return self.reusable([*self.tokens, NO_TOKEN], speculate=False) > 0

    def become(self, other: "CachedPrefix") -> None:
        """Hold what another prefix holds, which nobody uses any more."""
        self.tokens, self.cache, self.drafter = other.tokens, other.cache, other.drafter
        self.n_read = other.n_read
        self._sharers.discard(self)
        self._sharers = other._sharers
        self._sharers.discard(other)
        self._sharers.add(self)
        self.outlook, self.judged_by = other.outlook, other.judged_by

    @property
    def is_pageable(self) -> bool:
        """Whether every layer holds a row per token, so that rows can be cut out of them."""
        if any(layers is None for layers in self._layers.values()):
            return False
        n_rows = {array.shape[2] for array in self.cache.arrays().values()}
        n_head = {array.shape[2] for array in self._head_arrays().values()}
        # A draft model holds the row of the newest token too, which heads have not observed.
        return n_rows == {self.cache.rows} and n_head <= {self.head_rows, self.head_rows + 1}

    @property
    def why_not_pageable(self) -> str:
        """What will keep rows of long texts from being cut into blocks, in a line; "" if nothing.

        It is told by the kinds of layers, before they hold anything.
        """
        for name, layers in self._layers.items():
            if layers is None:
                return f"no rows are kept on disk: the {name} has layers without a row per token"
        bounds = [
            (layer.most_rows, name)
            for name, layers in self._layers.items()
            for layer in layers or ()
            if layer.most_rows is not None
        ]
        if not bounds:
            return ""
        most, name = min(bounds)
        return f"no rows of texts beyond {most} tokens are kept on disk: the {name} holds no more"

    @property
    def _layers(self) -> dict[str, list[KVCache] | None]:
        """The layers of target and head by name; None where some hold no row per token."""
        caches = {"target": self.cache, self._drafter_name: own_cache(self.drafter)}
        return {name: _row_layers(cache) for name, cache in caches.items() if cache is not None}

    @property
    def _drafter_name(self) -> str:
        head = self._engine.head
        is_model = head is not None and isinstance(without_lookup(head), DraftModel)
        return "draft model" if is_model else "head"

    @property
    def has_own_rows(self) -> bool:
        """Whether the head keeps rows that can be stored."""
        return isinstance(self.drafter, Restorable)

    @property
    def head_limit(self) -> int:
        """Rows up to which a head that keeps any has its own."""
        return self.head_rows if self.drafter is not None else self.cache.rows

    def _head_arrays(self) -> dict[str, mx.array]:
        return self.drafter.arrays() if isinstance(self.drafter, Restorable) else {}

    def _trim(self, rows: int) -> None:
        """Forget everything after the first `rows` rows."""
        self.cache.trim(rows)
        self.n_read = min(self.n_read, rows)
        if self.drafter is not None:
            self.drafter.trim(min(rows, self.drafter.rows))

    def trim_to_tokens(self) -> None:
        """Forget rows of tokens that are not held, now that an answer has ended."""
        self.stand_alone()
        if self.cache.rows <= len(self.tokens):
            return
        rows = self.cache.longest_restorable_prefix(len(self.tokens))
        if rows:
            self._trim(rows)
        else:
            tokens = self.tokens
            self.reset()
            self.tokens = tokens

    def fork(self) -> "CachedPrefix":
        """Return a copy that shares the rows held so far, and then goes its own way."""
        twin = copy.copy(self)
        twin.tokens, twin.cache = list(self.tokens), self.cache.fork()
        drafter = self.drafter
        # What cannot be copied starts empty, and reads the rows again that it needs.
        twin.drafter = drafter.fork() if isinstance(drafter, Restorable) else self._new_drafter()
        self._sharers.add(twin)
        return twin

    def arrays(self, *, with_head: bool = True) -> dict[str, mx.array]:
        """Return the rows that are held, target's and head's, by name."""
        own = {TARGET + name: array for name, array in self.cache.arrays().items()}
        if not with_head:
            return own
        return own | {HEAD + name: array for name, array in self._head_arrays().items()}

    def restore(
        self, tokens: list[int], arrays: dict[str, mx.array], rows: int, head_rows: int
    ) -> None:
        """Hold what `arrays` returned of a prefix with so many rows.

        Raises:
            ValueError: if the arrays are not those of these caches.
        """
        expected = self._sample().arrays()
        for name, array in arrays.items():
            # What a longer text adds to a layer (sinks) is shaped as its keys are.
            like = expected.get(name, expected.get(f"{name.rpartition('.')[0]}.keys"))
            if like is None or not _is_alike(array, like):
                raise ValueError(f"{name} is not a part of these caches")
        self.tokens, self.n_read = tokens, 0
        self.cache.restore(_part(arrays, TARGET), rows)
        if isinstance(self.drafter, Restorable):
            self.drafter.restore(_part(arrays, HEAD), head_rows)

    def _sample(self) -> "CachedPrefix":
        """Return a prefix of one row, which is never computed: it shows shapes and types."""
        sample = CachedPrefix(self._engine)
        token = mx.array([0], dtype=mx.int32)
        taps = self._engine.target.extend(token, sample.cache)
        if isinstance(sample.drafter, ReadsText):
            sample.drafter.begin(token)
        if sample.drafter is not None:
            sample.drafter.observe(taps, token)
        return sample


def _row_layers(cache: AnyCache) -> list[KVCache] | None:
    """Return the layers of a cache; None if one of them holds no row per token."""
    parts = cache.parts if isinstance(cache, TreeCache) else [None]
    layers = [part for part in parts if isinstance(part, KVCache)]
    return layers if len(layers) == len(parts) else None


def _part(arrays: dict[str, mx.array], start: str) -> dict[str, mx.array]:
    """Return the arrays whose names begin with `start`, by the rest of the name."""
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def _is_alike(array: mx.array, like: mx.array) -> bool:
    """Say whether two arrays have the same type and, but for the number of rows, shape."""
    rows_axis = 2 if like.ndim == 4 else None
    sizes = zip(array.shape, like.shape, strict=False)
    same = all(a == b for axis, (a, b) in enumerate(sizes) if axis != rows_axis)
    return array.dtype == like.dtype and array.ndim == like.ndim and same


def shared_tokens(held: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    for index, (old, new) in enumerate(zip(held, ids, strict=False)):
        if old != new:
            return index
    return min(len(held), len(ids))

"""mlx-lm's own caches behind the interface of ours, for targets that ours do not fit."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_eagle.tree import DraftTree


class StockCache:
    """mlx-lm's own caches, for targets that can decode plainly but not verify anything.

    They advance by themselves and cannot step back, so nothing but committed tokens may be run and
    a conversation is prefilled again at every turn.
    """

    chains_only = True

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes held by the caches."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def buffers(self) -> list[Any]:
        """The state to evaluate when the cache must be up to date."""
        return [layer.state for layer in self.layers]

    def open(self, tree: DraftTree) -> None:
        """Refuse trees; the forward pass over a chain itself advances the caches."""
        assert tree.is_chain, "this target cannot verify trees"

    def commit(self, path: Sequence[int]) -> None:
        """Count the rows that the forward pass has added."""
        self.rows += len(path)

    def fork(self) -> "StockCache":
        """Return a copy that goes its own way."""
        twin = StockCache(copy.deepcopy(self.layers))
        twin.rows = self.rows
        return twin

    def arrays(self) -> dict[str, mx.array]:
        """Return nothing: these caches cannot be written out, so their tokens are run again."""
        return {}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Stay empty, see `arrays`."""

    def checkpoint(self) -> None:
        """Remember nothing: there is no way back."""

    def longest_restorable_prefix(self, rows: int) -> int:
        """Return 0: only the empty state is a place to go back to, and it is made anew instead."""
        return 0

    def can_trim(self, rows: int) -> bool:
        """Say that there is no way back, see `longest_restorable_prefix`."""
        return False

    def trim(self, rows: int) -> None:
        """Never called: see `can_trim`."""
        raise AssertionError("stock caches cannot step back")

"""Drafting with Medusa heads: one distribution per depth, from the newest hidden state."""

import copy
from collections.abc import Generator
from typing import Self

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.fixed import draft_fixed
from mlx_eagle.drafters.ranking import (
    independent_candidates,
    independent_children,
    likeliest,
    to_tree,
)
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class MedusaDrafter:
    """Medusa heads on the newest hidden state of the target; they keep no cache to bound."""

    buffers: tuple[mx.array, ...] = ()
    nbytes = 0

    def __init__(self, head: MedusaHead, target: Target, window: int | None = None) -> None:
        self.head = head
        self.unembed = target.unembed
        self.rows = 0
        self._newest: mx.array | None = None  # [1, 1, D]

    @property
    def max_width(self) -> int:
        """The draft vocabulary."""
        return self.head.config.draft_vocab_size

    @property
    def max_depth(self) -> int:
        """One token for each head."""
        return self.head.max_depth

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Keep the last of L hidden states [L, D]."""
        assert taps is not None, "Medusa heads need a tapped target"
        self._newest = taps[None, -1:]
        self.rows += next_tokens.shape[0]

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        log_probs, tokens = self._all_depths(shape.width, shape.depth)
        return to_tree(root, independent_candidates(log_probs, tokens), shape)

    def draft_static(self, root: mx.array, tree: StaticTree) -> DraftTree:
        """Propose a tree of this structure: a node of rank r is the r-th token of its depth."""
        log_probs, tokens = self._all_depths(tree.width, tree.depth)
        return draft_fixed(independent_children(log_probs, tokens), root, tree)

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest tokens of every depth; the first costs what all do."""
        log_probs, tokens = self._all_depths(min(k, self.max_width), depth)
        yield from zip(log_probs, tokens, strict=True)

    def _all_depths(self, k: int, depth: int) -> tuple[mx.array, mx.array]:
        """Return the log-probabilities and target ids, [depth, k] each, of the likeliest."""
        assert depth <= self.max_depth, "a tree deeper than there are heads"
        assert self._newest is not None, "observe a token before drafting"
        log_probs, ids = likeliest(self.head(self._newest, self.unembed, depth), k)
        return log_probs, self.head.draft_to_target[ids]

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` tokens; the next `observe` brings the newest."""
        if rows < self.rows:
            self._newest = None
        self.rows = rows

    def fork(self) -> Self:
        """Return a copy; there is nothing to share."""
        return copy.copy(self)

    def arrays(self) -> dict[str, mx.array]:
        """Return nothing: the next token brings all that is needed."""
        return {}

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Count the rows that were observed."""
        self.rows, self._newest = rows, None

"""Drafting all depths at once: P-EAGLE and Medusa heads.

Such a head gives one distribution per depth, whatever stands at the depths before, so a node's
children are the likeliest tokens of its depth. The tree is ranked as EAGLE-2's is.
"""

import copy
from collections.abc import Generator
from typing import Self

import mlx.core as mx

from mlx_eagle.drafters import Level
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.ranking import Candidates, best, join, likeliest, to_tree
from mlx_eagle.heads.eagle import HeadOutput
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


def grow(log_probs: mx.array, tokens: mx.array) -> Candidates:
    """Return the candidates of a tree whose depths are independent of each other.

    Args:
        log_probs: [depth, k] float32 of the k likeliest tokens of each depth.
        tokens: [depth, k] int32 target ids.
    """
    depth, k = tokens.shape
    levels = [Candidates(tokens[0], mx.full((k,), -1), log_probs[0], mx.full((k,), 1))]
    made, frontier = 0, mx.arange(k)
    for d in range(1, depth):
        scores = (levels[-1].scores[frontier][:, None] + log_probs[d]).reshape(-1)
        parents = mx.repeat(made + frontier, k)
        made += levels[-1].tokens.shape[0]
        below = mx.tile(tokens[d], k)
        levels.append(Candidates(below, parents, scores, mx.full((k * k,), d + 1)))
        frontier = best(scores, k)
    return join(levels)


class PEagleDrafter(EagleDrafter):
    """A P-EAGLE head: masked rows after the newest token, one for each further depth."""

    def _grow(self, newest: HeadOutput, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes."""
        return grow(*self._all_depths(newest, shape.width, shape.depth))

    def spine(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest tokens of every depth; the first costs what all do."""
        assert self._newest is not None, "observe a token before drafting"
        log_probs, tokens = self._all_depths(self._newest, min(k, self.max_width), depth)
        self.cache.commit([])
        yield from zip(log_probs, tokens, strict=True)

    def _all_depths(self, newest: HeadOutput, k: int, depth: int) -> tuple[mx.array, mx.array]:
        """Return [depth, k] log-probabilities and ids, in one step (arXiv 2602.01469)."""
        normed = newest.normed
        if depth > 1:
            hidden, tokens = self.head.masked(depth - 1)
            masked = self.head(hidden, self.embed(tokens), self.cache)
            normed = mx.concatenate([normed, masked.normed], axis=1)  # [1, depth, h]
        log_probs, ids = likeliest(self.unembed(normed)[0], k)
        return log_probs, self.head.draft_to_target[ids]


class MedusaDrafter:
    """Medusa heads on the newest hidden state of the target; they keep no cache."""

    buffers: tuple[mx.array, ...] = ()
    nbytes = 0

    def __init__(self, head: MedusaHead, target: Target) -> None:
        self.head = head
        self.unembed = target.unembed
        self.rows = 0
        self._newest: mx.array | None = None  # [1, 1, H]

    @property
    def max_width(self) -> int:
        """The draft vocabulary."""
        return self.head.config.draft_vocab_size

    @property
    def max_depth(self) -> int:
        """One token for each head."""
        return self.head.config.num_heads

    def observe(self, taps: mx.array | None, followers: mx.array) -> None:
        """Keep the last of L hidden states [L, H]."""
        assert taps is not None, "Medusa heads need a tapped target"
        self._newest = taps[None, -1:]
        self.rows += followers.shape[0]

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        log_probs, tokens = self._all_depths(shape.width, shape.depth)
        return to_tree(root, grow(log_probs, tokens), shape)

    def spine(self, k: int, depth: int) -> Generator[Level]:
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

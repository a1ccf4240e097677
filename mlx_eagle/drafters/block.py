"""Drafting with a DFlash head: a block of tokens in one step (arXiv 2602.06036).

As with P-EAGLE, the depths are independent of each other, so the children of a node are the
likeliest tokens of its depth, and the tree is ranked as EAGLE-2's is. What is cached is the context
alone: the rows of a block are forgotten as soon as it is drafted.
"""

from collections.abc import Generator

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.cached import CachedDrafter
from mlx_eagle.drafters.ranking import Candidates, independent_candidates, likeliest, to_tree
from mlx_eagle.heads.block import BlockHead
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class BlockDrafter(CachedDrafter):
    """A DFlash head and the context that its layers attend to."""

    head: BlockHead
    _newest: mx.array | None  # [1] the root

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Make context of L committed tokens: taps [L, A * D], next_tokens [L]."""
        assert taps is not None, "a head needs a tapped target"
        for piece in self._pieces(next_tokens.shape[0]):
            self.head.keep_context(taps[None, piece], self.cache)
            self.cache.commit(range(piece.stop - piece.start))
        self._newest = next_tokens[-1:]

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        return to_tree(root, self._expand(root, shape), shape)

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest tokens of every depth; the first costs what all do."""
        assert self._newest is not None, "observe a token before drafting"
        log_probs, tokens = self._all_depths(self._newest, min(k, self.max_width), depth)
        yield from zip(log_probs, tokens, strict=True)

    def logits_along(self, root: mx.array, path: mx.array) -> mx.array:
        """Return the logits [depth, W] of the levels below `root` [1], as if `path` were drafted.

        Args:
            root: the next token that was observed last.
            path: [depth - 1] target ids.
        """
        return self.unembed(self._states(root, path.size + 1))[0]

    def _expand(self, root: mx.array, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes."""
        return independent_candidates(*self._all_depths(root, shape.width, shape.depth))

    def _all_depths(self, root: mx.array, k: int, depth: int) -> tuple[mx.array, mx.array]:
        """Return the log-probabilities and target ids, [depth, k] each, of the likeliest."""
        log_probs, ids = likeliest(self.unembed(self._states(root, depth))[0], k)
        return log_probs, self.head.draft_to_target[ids]

    def _states(self, root: mx.array, depth: int) -> mx.array:
        """Return what the output layer reads of a block below `root` [1]: [1, depth, h]."""
        states = self.head(self.embed(self.head.block(root, depth)), self.cache, depth)
        self.cache.commit([])  # forget the block's rows
        return states

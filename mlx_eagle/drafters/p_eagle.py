"""Drafting with a P-EAGLE head: all depths in one step (arXiv 2602.01469).

The head gives one distribution per depth, whatever stands at the depths before, so the children of
a node are the likeliest tokens of its depth. The tree is ranked as EAGLE-2's is.
"""

from collections.abc import Callable, Generator

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.ranking import Children, Frontier, independent_children, likeliest
from mlx_eagle.heads.eagle import HeadOutput


class PEagleDrafter(EagleDrafter):
    """A P-EAGLE head: masked rows after the newest token, one for each further depth."""

    def _children(
        self, newest: HeadOutput, k: int, depth: int
    ) -> Callable[[int, Frontier], Children]:
        """Return what gives each node of a frontier the k likeliest tokens of its depth."""
        return independent_children(*self._all_depths(newest, k, depth))

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
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

"""Drafting with a head of the EAGLE family: the dynamic tree of EAGLE-2, or EAGLE-1's fixed one.

Each level runs the head once over the best `width` nodes of the level before; every one of their
`width` likeliest children is a candidate; in the end the best `nodes` candidates of all levels are
kept (arXiv 2406.16858, section 4). A P-EAGLE head is run once for all levels instead, see
`p_eagle.py`. Everything here is lazy: a call builds a graph and copies nothing to the host.
"""

from collections.abc import Callable, Generator

import mlx.core as mx

from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.cached import CachedDrafter
from mlx_eagle.drafters.fixed import draft_fixed
from mlx_eagle.drafters.ranking import Candidates, Children, Frontier, expand, likeliest, to_tree
from mlx_eagle.heads.eagle import EagleHead, HeadOutput
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class EagleDrafter(CachedDrafter):
    """A head of the EAGLE family, which is run once for each level.

    The cache's rows are computed from true taps. Rows of drafted tokens come after them and are
    forgotten once a tree is drafted, accepted or not, because they were computed from the head's
    own guesses.
    """

    head: EagleHead
    _newest: HeadOutput | None

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Run the head over L committed tokens: taps [L, A * D], next_tokens [L]."""
        assert taps is not None, "a head needs a tapped target"
        for piece in self._pieces(next_tokens.shape[0]):
            tokens = next_tokens[None, piece]
            out = self.head(self.head.fuse(taps[None, piece]), self.embed(tokens), self.cache)
            self.cache.commit(range(tokens.shape[1]))
        self._newest = HeadOutput(out.normed[:, -1:], out.feedback[:, -1:])

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        assert self._newest is not None, "observe a token before drafting"
        candidates = self._expand(root, self._newest, shape)
        self.cache.commit([])  # forget the drafted rows
        return to_tree(root, candidates, shape)

    def draft_static(self, root: mx.array, tree: StaticTree) -> DraftTree:
        """Propose a tree of this structure below `root` [1]; see `fixed.py`."""
        assert self._newest is not None, "observe a token before drafting"
        drafted = draft_fixed(self._children(self._newest, tree.width, tree.depth), root, tree)
        self.cache.commit([])  # forget the drafted rows
        return drafted

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Yield the k likeliest children of the likeliest node: one row of the head per level."""
        assert self._newest is not None, "observe a token before drafting"
        out = self._newest
        try:
            for level in range(depth):
                log_probs, ids = likeliest(self.unembed(out.normed)[0], min(k, self.max_width))
                tokens = self.head.draft_to_target[ids[0]]
                yield log_probs[0], tokens
                if level + 1 < depth:
                    out = self.head(out.feedback, self.embed(tokens[None, :1]), self.cache)
        finally:
            self.cache.commit([])  # forget the drafted rows

    def _expand(self, root: mx.array, newest: HeadOutput, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes, level by level."""
        children = self._children(newest, shape.width, shape.depth)
        return expand(children, root, shape.depth, shape.width)

    def _children(
        self, newest: HeadOutput, k: int, depth: int
    ) -> Callable[[int, Frontier], Children]:
        """Return what gives the k likeliest tokens after each node of a frontier."""
        out = newest

        def children(level: int, frontier: Frontier) -> Children:
            nonlocal out
            if level:
                out = self._step(out.feedback[:, frontier.parents], frontier)
            log_probs, ids = likeliest(self.unembed(out.normed)[0], k)
            return log_probs, self.head.draft_to_target[ids]

        return children

    def _step(self, feedback: mx.array, frontier: Frontier) -> HeadOutput:
        """Run the head over one level: feedback [1, F, h] of the parents."""
        if not frontier.is_chain:
            self.cache.expect(frontier.open_rows(self.cache.rows))
        return self.head(feedback, self.embed(frontier.tokens[None]), self.cache)

"""Drafting with a head of the EAGLE family: the dynamic tree of EAGLE-2.

Each level runs the head once over the best `width` nodes of the level before; every one of their
`width` likeliest children is a candidate; in the end the best `nodes` candidates of all levels are
kept (arXiv 2406.16858, section 4). A P-EAGLE head is run once for all levels instead, see
`p_eagle.py`. Everything here is lazy: a call builds a graph and copies nothing to the host.
"""

from collections.abc import Generator

import mlx.core as mx

from mlx_eagle.cache.kv import OpenRows
from mlx_eagle.drafters.base import Level
from mlx_eagle.drafters.cached import CachedDrafter
from mlx_eagle.drafters.ranking import Candidates, best, join, likeliest, to_tree
from mlx_eagle.heads.eagle import EagleHead, HeadOutput
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class EagleDrafter(CachedDrafter):
    """A head of the EAGLE family, which is run once for each level.

    The cache's rows are computed from true taps. Rows of drafted tokens come after them and are
    forgotten once a tree is drafted, accepted or not, because they were computed from the head's
    own guesses.
    """

    head: EagleHead

    def __init__(self, head: EagleHead, target: Target, window: int | None = None) -> None:
        super().__init__(head, target, window)
        self._newest: HeadOutput | None = None

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
        candidates = self._expand(self._newest, shape)
        self.cache.commit([])  # forget the drafted rows
        return to_tree(root, candidates, shape)

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

    def restore(self, arrays: dict[str, mx.array], rows: int) -> None:
        """Hold what `arrays` returned of a drafter with `rows` observed tokens."""
        super().restore(arrays, rows)
        self._newest = None

    def _expand(self, newest: HeadOutput, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes, level by level."""
        k = shape.width
        scores, tokens = self._children(newest, mx.zeros((1,)), k)
        levels = [Candidates(tokens, mx.full((k,), -1), scores, mx.full((k,), 1))]
        made, frontier = 0, mx.arange(k)  # frontier: which of the newest level are expanded
        feedback = mx.broadcast_to(newest.feedback, (1, k, newest.feedback.shape[2]))
        seen: mx.array | None = None  # [k, drafted rows] bool: each frontier node's own ancestors
        for depth in range(1, shape.depth):
            level = levels[-1]
            seen = _extend_seen(seen, frontier // k, k)
            out = self._step(feedback, level.tokens[frontier], seen)
            scores, tokens = self._children(out, level.scores[frontier], k)
            parents = mx.repeat(made + frontier, k)
            made += level.tokens.shape[0]
            levels.append(Candidates(tokens, parents, scores, mx.full((k * k,), depth + 1)))
            frontier = best(scores, k)
            feedback = out.feedback[:, frontier // k]
        return join(levels)

    def _step(self, feedback: mx.array, tokens: mx.array, seen: mx.array) -> HeadOutput:
        """Run the head over one level: feedback [1, k, h] of the parents, tokens [k]."""
        k, n_drafted = seen.shape
        if k > 1:  # a chain's rows follow in sequence
            levels = mx.repeat(mx.arange(n_drafted // k), k)
            columns = self.cache.rows + levels
            self.cache.expect(OpenRows(columns[-k:], columns, seen))
        return self.head(feedback, self.embed(tokens[None]), self.cache)

    def _children(self, out: HeadOutput, scores: mx.array, k: int) -> tuple[mx.array, mx.array]:
        """Return path scores and target ids, [R * k] each, of the k likeliest children.

        Args:
            out: of R nodes, [1, R, h].
            scores: [R] path scores of these nodes.
            k: children per node.
        """
        log_probs, ids = likeliest(self.unembed(out.normed)[0], k)
        return (scores[:, None] + log_probs).reshape(-1), self.head.draft_to_target[ids.reshape(-1)]


def _extend_seen(seen: mx.array | None, parents: mx.array, k: int) -> mx.array:
    """Return [k, rows + k]: the drafted rows that k new rows see, themselves included."""
    own = mx.eye(k, dtype=mx.bool_)
    return own if seen is None else mx.concatenate([seen[parents], own], axis=1)

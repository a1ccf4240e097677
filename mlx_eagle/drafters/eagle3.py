"""Drafting with an EAGLE-3 head: the dynamic tree of EAGLE-2 (arXiv 2406.16858, section 4).

Each level runs the head once over the best `width` nodes of the level before; every one of their
`width` likeliest children is a candidate; in the end the best `nodes` candidates of all levels are
kept. Scores are cumulative log-probabilities in float32. Ties go to the candidate that was made
first, and a parent is made before its children and never scores below them, so no child can be
kept without its parent, not even where a log-probability rounds to 0.

Everything here is lazy: a call builds a graph and reads nothing back.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.cache import KVCache
from mlx_eagle.head import Eagle3Head, HeadOutput
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class Candidates(NamedTuple):
    """Scored nodes, C of them, in the order in which they were made.

    Attributes:
        tokens: [C] int32 target ids.
        parents: [C] int32 candidate indices; -1 is the root.
        scores: [C] float32 log-probability of the path from the root.
        depths: [C] int32, 1 for the children of the root.
    """

    tokens: mx.array
    parents: mx.array
    scores: mx.array
    depths: mx.array


class Eagle3Drafter:
    """An EAGLE-3 head, the target's embedding, and the head's own KV cache.

    The cache holds one row per observed token, computed from true taps. Rows of drafted tokens
    come after them and are forgotten once a tree is drafted, accepted or not, because they were
    computed from the head's own guesses.
    """

    def __init__(self, head: Eagle3Head, embedding: nn.Module) -> None:
        self.head = head
        self.embedding = embedding
        self.cache = KVCache()
        self._newest: HeadOutput | None = None

    @property
    def max_width(self) -> int:
        """The draft vocabulary."""
        return self.head.config.draft_vocab_size

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return self.cache.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the head's KV cache."""
        return self.cache.nbytes

    @property
    def buffers(self) -> list[mx.array]:
        """The arrays to evaluate when the head must be up to date."""
        return self.cache.buffers

    def observe(self, taps: mx.array | None, followers: mx.array) -> None:
        """Run the head over L committed tokens: taps [L, T * H], followers [L]."""
        assert taps is not None, "an EAGLE-3 head needs a tapped target"
        n = followers.shape[0]
        out = self.head(
            self.head.fuse(taps[None]),
            self.embedding(followers[None]),
            mask=None if n == 1 else "causal",
            cache=self.cache,
            offset=self.cache.rows,
        )
        self.cache.commit(range(n))
        self._newest = HeadOutput(out.normed[:, -1:], out.feedback[:, -1:])

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the best `shape.nodes` nodes below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        candidates = self._grow(shape)
        self.cache.commit([])  # forget the drafted rows
        if shape.width == 1:
            tokens = mx.concatenate([root, candidates.tokens])[: shape.nodes + 1]
            scores = mx.concatenate([mx.zeros((1,)), candidates.scores])[: shape.nodes + 1]
            return DraftTree.chain(tokens, scores)
        return rerank(root, candidates, shape)

    def trim(self, rows: int) -> None:
        """Forget everything after the first `rows` observed tokens."""
        self.cache.trim(rows)

    def _grow(self, shape: TreeShape) -> Candidates:
        """Score `shape.n_candidates` nodes, level by level."""
        assert self._newest is not None, "observe a token before drafting"
        k = shape.width
        scores, tokens = self._children(self._newest, mx.zeros((1,)), k)
        levels = [Candidates(tokens, mx.full((k,), -1), scores, mx.full((k,), 1))]
        made, frontier = 0, mx.arange(k)  # frontier: which of the newest level are expanded
        feedback = mx.broadcast_to(self._newest.feedback, (1, k, self._newest.feedback.shape[2]))
        seen: mx.array | None = None  # [k, drafted rows] bool: each frontier node's own ancestors
        for level in range(1, shape.depth):
            newest = levels[-1]
            seen = _extend_seen(seen, frontier // k, k)
            out = self._step(feedback, newest.tokens[frontier], seen, level)
            scores, tokens = self._children(out, newest.scores[frontier], k)
            parents = mx.repeat(made + frontier, k)
            made += newest.tokens.shape[0]
            levels.append(Candidates(tokens, parents, scores, mx.full((k * k,), level + 1)))
            frontier = best(scores, k)
            feedback = out.feedback[:, frontier // k]
        return Candidates(*(mx.concatenate(list(part)) for part in zip(*levels, strict=True)))

    def _step(self, feedback: mx.array, tokens: mx.array, seen: mx.array, level: int) -> HeadOutput:
        """Run the head over one level: feedback [1, k, h] of the parents, tokens [k]."""
        k, mask, position = tokens.shape[0], None, self.cache.rows + level - 1
        if k > 1:
            stable = mx.ones((k, self.cache.rows), dtype=mx.bool_)
            mask = mx.concatenate([stable, seen], axis=1)  # [k, rows + drafted]
        return self.head(
            feedback,
            self.embedding(tokens[None]),
            mask=mask,
            cache=self.cache,
            # All nodes of a level stand at the same position.
            offset=position if k == 1 else mx.full((k,), position),
        )

    def _children(self, out: HeadOutput, scores: mx.array, k: int) -> tuple[mx.array, mx.array]:
        """Return path scores and target ids, [R * k] each, of the k likeliest children.

        Args:
            out: of R nodes, [1, R, h].
            scores: [R] path scores of these nodes.
            k: children per node.
        """
        logits = self.head.lm_head(out.normed)[0].astype(mx.float32)  # [R, W]
        ids = top_ids(logits, k)
        log_probs = mx.take_along_axis(logits, ids, axis=-1)
        log_probs = log_probs - mx.logsumexp(logits, axis=-1, keepdims=True)
        children = (scores[:, None] + log_probs).reshape(-1)
        children = mx.where(mx.isnan(children), -mx.inf, children)
        return children, self.head.draft_to_target[ids.reshape(-1)]


def rerank(root: mx.array, candidates: Candidates, shape: TreeShape) -> DraftTree:
    """Keep the best `shape.nodes` candidates and number them as nodes below `root` [1]."""
    kept = mx.sort(best(candidates.scores, shape.nodes))  # [nodes], parents first
    node_of = mx.zeros((shape.n_candidates,), dtype=mx.int32)
    node_of[kept] = mx.arange(1, shape.nodes + 1, dtype=mx.int32)
    parents = candidates.parents[kept]
    parents = mx.where(parents < 0, 0, node_of[mx.maximum(parents, 0)])
    zero = mx.zeros((1,), dtype=mx.int32)
    return DraftTree(
        tokens=mx.concatenate([root, candidates.tokens[kept]]),
        parents=mx.concatenate([zero, parents]),
        depths=mx.concatenate([zero, candidates.depths[kept]]),
        log_probs=mx.concatenate([mx.zeros((1,)), candidates.scores[kept]]),
        max_depth=shape.depth,
        is_chain=False,
    )


def best(scores: mx.array, n: int) -> mx.array:
    """Return the indices [n] of the highest scores [C]; of equal scores the lower index wins.

    The rank of every score is counted, because no sort of MLX promises to be stable.
    """
    if n == scores.shape[0]:
        return mx.arange(n, dtype=mx.int32)
    index = mx.arange(scores.shape[0])
    ahead = (scores[None] > scores[:, None]) | (
        (scores[None] == scores[:, None]) & (index[None] < index[:, None])
    )
    rank = ahead.sum(axis=1)  # [C], each rank once
    return mx.argsort(rank)[:n].astype(mx.int32)


def top_ids(logits: mx.array, k: int) -> mx.array:
    """Return the indices [R, k] of the k largest logits [R, W], the largest first."""
    if k == 1:
        return mx.argmax(logits, axis=-1, keepdims=True)
    ids = mx.argpartition(-logits, kth=k - 1, axis=-1)[:, :k]
    order = mx.argsort(-mx.take_along_axis(logits, ids, axis=-1), axis=-1)
    return mx.take_along_axis(ids, order, axis=-1)


def _extend_seen(seen: mx.array | None, parents: mx.array, k: int) -> mx.array:
    """Return [k, rows + k]: the drafted rows that k new rows see, themselves included."""
    own = mx.eye(k, dtype=mx.bool_)
    return own if seen is None else mx.concatenate([seen[parents], own], axis=1)

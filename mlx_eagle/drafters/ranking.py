"""Scored candidates and the best of them as a tree, for all drafters that rank candidates.

Scores are cumulative log-probabilities in float32 (EAGLE-2, arXiv 2406.16858, section 4). Ties go
to the candidate that was made first, and a parent is made before its children and never scores
below them, so no child is kept without its parent, not even where a log-probability rounds to 0.
Everything here is lazy: nothing is copied to the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.cache.kv import OpenRows
from mlx_eagle.sampling.largest import top_ids
from mlx_eagle.tree import DraftTree, TreeShape


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


class Frontier(NamedTuple):
    """The F nodes of a level whose children are drafted next.

    Attributes:
        tokens: [F] int32 target ids.
        parents: [F] int32, which nodes of the frontier before they are children of.
        seen: [F, M] bool, which of the M nodes of all frontiers so far each one sees, those of its
            own coming last; the root is not counted.
        sizes: nodes of each frontier so far, those of its own coming last.
    """

    tokens: mx.array
    parents: mx.array
    seen: mx.array
    sizes: tuple[int, ...] = ()

    @classmethod
    def of_one(cls, token: mx.array) -> "Frontier":
        """Return the frontier of one node, its token [1]: of the root, before anything else."""
        return cls(token, mx.zeros((1,), dtype=mx.int32), mx.zeros((1, 0), dtype=mx.bool_))

    @property
    def is_chain(self) -> bool:
        """Whether each node so far follows the one before, as the rows of a cache do anyway."""
        return all(size == 1 for size in self.sizes)

    def open_rows(self, rows: int) -> OpenRows:
        """Return the drafted rows of all frontiers, in a cache of `rows` others."""
        levels = [level for level, size in enumerate(self.sizes) for _ in range(size)]
        columns = rows + mx.array(levels)
        return OpenRows(columns[-self.sizes[-1] :], columns, self.seen)


Children = tuple[mx.array, mx.array]  # log-probabilities and target ids, [F, k] each


def expand(
    children: Callable[[int, Frontier], Children], root: mx.array, depth: int, k: int
) -> Candidates:
    """Return the candidates of a tree: of each level the best k nodes are expanded (EAGLE-2, 4.1).

    Args:
        children: what gives the k likeliest children of a frontier, whose depth it is told; the
            first one is the root.
        root: [1] int32.
        depth: levels.
        k: nodes of a level that are expanded, and children of each.
    """
    levels: list[Candidates] = []
    frontier = Frontier.of_one(root)
    scores, chosen, made = mx.zeros((1,)), mx.full((1,), -1), 0
    for level in range(depth):
        log_probs, tokens = children(level, frontier)
        if levels:
            made += levels[-1].tokens.shape[0]
        n = tokens.size
        levels.append(
            Candidates(
                tokens.reshape(-1),
                mx.repeat(chosen, k),
                (scores[:, None] + log_probs).reshape(-1),
                mx.full((n,), level + 1),
            )
        )
        best_ones = best(levels[-1].scores, k)
        above = best_ones // k
        frontier = Frontier(
            levels[-1].tokens[best_ones],
            above,
            _extend_seen(frontier, above),
            (*frontier.sizes, above.shape[0]),
        )
        scores, chosen = levels[-1].scores[best_ones], made + best_ones
    return join(levels)


def _extend_seen(before: Frontier, parents: mx.array) -> mx.array:
    """Return [F, M + F]: the drafted nodes that F new ones see, themselves included."""
    own = mx.eye(parents.shape[0], dtype=mx.bool_)
    is_first = not before.seen.shape[1]
    return own if is_first else mx.concatenate([before.seen[parents], own], axis=1)


def join(levels: list[Candidates]) -> Candidates:
    """Return the candidates of all levels, the first level first."""
    return Candidates(*(mx.concatenate(list(part)) for part in zip(*levels, strict=True)))


def to_tree(root: mx.array, candidates: Candidates, shape: TreeShape) -> DraftTree:
    """Return the best `shape.nodes` candidates as a tree below `root` [1]."""
    if shape.width > 1:
        return rerank(root, candidates, shape)
    tokens = mx.concatenate([root, candidates.tokens])[: shape.nodes + 1]
    scores = mx.concatenate([mx.zeros((1,)), candidates.scores])[: shape.nodes + 1]
    return DraftTree.chain(tokens, scores)


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


def likeliest(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return the log-probabilities [R, k] and draft ids [R, k] of the k likeliest of [R, W]."""
    logits = logits.astype(mx.float32)
    ids = top_ids(logits, k)
    log_probs = mx.take_along_axis(logits, ids, axis=-1)
    log_probs = log_probs - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.where(mx.isnan(log_probs), -mx.inf, log_probs), ids


def independent_candidates(log_probs: mx.array, tokens: mx.array) -> Candidates:
    """Return the candidates of a tree whose depths are independent of each other.

    Args:
        log_probs: [depth, k] float32 of the k likeliest tokens of each depth.
        tokens: [depth, k] int32 target ids.
    """
    depth, k = tokens.shape
    return expand(independent_children(log_probs, tokens), tokens[0, :1], depth, k)


def independent_children(
    log_probs: mx.array, tokens: mx.array
) -> Callable[[int, Frontier], Children]:
    """Return what gives each node of a frontier the tokens of its depth, [depth, k] in all."""

    def children(level: int, frontier: Frontier) -> Children:
        shape = (frontier.tokens.shape[0], tokens.shape[1])
        return mx.broadcast_to(log_probs[level], shape), mx.broadcast_to(tokens[level], shape)

    return children

"""Drafts that are drawn, for acceptance by the ratio of probabilities (`sampling/ratio.py`).

What is drafted is a drafter's own distribution, level by level, in a tree of a fixed structure.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter, Draws, Level, ReadsText
from mlx_eagle.sampling.ratio import RatioSampler
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape


class DrawnDrafts:
    """A drafter for one answer, which draws what the drafter behind it would choose."""

    def __init__(self, drafter: Drafter, sampler: RatioSampler) -> None:
        assert isinstance(drafter, Draws), "a request for other drafters is refused"
        self._drafter, self._draws, self._sampler = drafter, drafter, sampler

    @property
    def max_width(self) -> int:
        """As wide as the drafter's own."""
        return self._drafter.max_width

    @property
    def max_depth(self) -> int:
        """As deep as the drafter's own."""
        return self._drafter.max_depth

    @property
    def rows(self) -> int:
        """Committed tokens observed."""
        return self._drafter.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the drafter's cache."""
        return self._drafter.nbytes

    @property
    def buffers(self) -> Sequence[mx.array]:
        """The drafter's arrays."""
        return self._drafter.buffers

    def begin(self, token: mx.array) -> None:
        """Let a drafter that reads the text itself begin."""
        if isinstance(self._drafter, ReadsText):
            self._drafter.begin(token)

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Let the drafter observe."""
        self._drafter.observe(taps, next_tokens)

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Draw a tree of this shape below `root` [1]."""
        if shape == PLAIN:
            return DraftTree.chain(root)
        return self._draws.draw(root, StaticTree.drawn(shape), self._sampler)

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Never asked for: to stop by confidence would bias the text."""
        raise AssertionError("drafts that are drawn are not checked")

    def trim(self, rows: int) -> None:
        """Let the drafter forget."""
        self._drafter.trim(rows)


# Logits [R, W] after the tokens [R] of a level; R x M: which of all M given tokens each one sees.
Seen = list[list[bool]]
Forward = Callable[[mx.array, Seen], mx.array]


def draw_tree(
    root: mx.array,
    tree: StaticTree,
    sampler: RatioSampler,
    newest: mx.array,
    position: int,
    forward: Forward,
) -> DraftTree:
    """Draw the tokens of a tree, level by level.

    Args:
        root: [1] int32.
        tree: its structure.
        sampler: draws.
        newest: [1, W] logits after the root.
        position: of the root.
        forward: returns the logits after drafted tokens.
    """
    given: list[int] = []  # nodes that `forward` was given
    logits, nodes = newest, [0]
    tokens, scores = [root], mx.zeros((1,))
    rows = mx.full((tree.n_nodes, newest.shape[-1]), -mx.inf)
    for depth in range(tree.depth):
        k = max(len(tree.children[node]) for node in nodes)
        drawn = sampler.draw(logits, k, position, depth)
        below = tree.level(depth + 1)
        at = mx.array([nodes.index(tree.parents[node]) for node in below])
        rank = mx.array([tree.paths[node - 1][-1] for node in below])
        tokens.append(drawn.tokens[at, rank])
        rows[mx.array(nodes)] = drawn.log_probs
        own = drawn.log_probs[at, tokens[-1]]
        scores = mx.concatenate([scores, scores[mx.array([tree.parents[n] for n in below])] + own])
        nodes = [node for node in below if tree.children[node]]
        if nodes:
            given += nodes
            kept = mx.array([below.index(node) for node in nodes])
            logits = forward(tokens[-1][kept], _seen(tree, nodes, given))
    structure = DraftTree.static(mx.concatenate(tokens), tree.parents)
    return replace(structure, log_probs=scores, draft_log_probs=rows)


def _seen(tree: StaticTree, nodes: Sequence[int], given: Sequence[int]) -> Seen:
    """Return R x M: which of M given nodes are ancestors of each of R nodes, or the node itself."""
    paths = [(), *tree.paths]
    return [[paths[n][: len(paths[g])] == paths[g] for g in given] for n in nodes]

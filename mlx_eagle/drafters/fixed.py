"""Trees of a fixed structure (`static_tree.py`), filled with a drafter's tokens.

A node of rank r is the r-th token after its parent: the r-th likeliest one, as EAGLE-1 drafts
(arXiv 2401.15077, section 3.1), or of draws the r-th. Nothing is ranked, and nothing copied to the
host.
"""

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from mlx_eagle.drafters.ranking import Children, Frontier
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import DraftTree


def draft_fixed(
    children: Callable[[int, Frontier], Children], root: mx.array, tree: StaticTree
) -> DraftTree:
    """Return a tree of this structure below `root` [1], level by level.

    Args:
        children: what gives the tokens after a frontier, whose depth it is told; of each level
            only the nodes that have children are one.
        root: [1] int32.
        tree: the structure.
    """
    tokens, scores, nodes = [root], mx.zeros((1,)), [0]
    frontier, given = Frontier.of_one(root), list[int]()
    for depth in range(tree.depth):
        log_probs, ids = children(depth, frontier)  # [F, k]
        below = tree.level(depth + 1)
        above = [tree.parents[node] for node in below]
        at = mx.array([nodes.index(parent) for parent in above])
        rank = mx.array([tree.paths[node - 1][-1] for node in below])
        tokens.append(ids[at, rank])
        scores = mx.concatenate([scores, scores[mx.array(above)] + log_probs[at, rank]])
        if inner := tree.inner(depth + 1):
            given += inner
            kept = mx.array([below.index(node) for node in inner])
            sizes = (*frontier.sizes, len(inner))
            frontier = Frontier(tokens[-1][kept], at[kept], _seen(tree, inner, given), sizes)
            nodes = inner
    structure = DraftTree.static(mx.concatenate(tokens), tree.parents)
    return replace(structure, log_probs=scores)


def _seen(tree: StaticTree, nodes: list[int], given: list[int]) -> mx.array:
    """Return [F, M] bool: which of M given nodes each of F nodes sees, itself included."""
    paths = [(), *tree.paths]
    return mx.array([[paths[n][: len(paths[g])] == paths[g] for g in given] for n in nodes])

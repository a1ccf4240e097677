"""Drafting as a planner wants it: level by level along the likeliest token, as far as it pays.

The likeliest token of every level is drafted below; its likeliest siblings are leaves. One step of
the head per level, and a tree all the same. Where a `Looker` decides, every level is read back.
"""

from contextlib import closing
from itertools import islice

import mlx.core as mx
import numpy as np

from mlx_eagle.drafters import Drafter
from mlx_eagle.planner.planner import CHILDREN
from mlx_eagle.planner.policy import Level, Looker, Node, Plan
from mlx_eagle.tree import PLAIN, DraftTree


def draft_as_planned(drafter: Drafter | None, root: mx.array, plan: Plan) -> DraftTree:
    """Return the tree of a round below `root` [1]: of a fixed shape, or as a looker decides."""
    if drafter is None or plan.shape == PLAIN:
        return DraftTree.chain(root)
    if plan.looker is None:
        return drafter.draft(root, plan.shape)
    levels = look(drafter, plan.looker, plan.shape.depth, plan.stride, plan.n_children)
    return spine_tree(root, levels, plan.looker.choose())


def look(
    drafter: Drafter, looker: Looker, depth: int, stride: int = 1, n_children: int = CHILDREN
) -> list[Level]:
    """Draft levels, `stride` at a time, until the looker has enough or there are `depth`."""
    levels: list[Level] = []
    with closing(drafter.spine(n_children, depth)) as spine:
        while drafted := list(islice(spine, stride)):
            # The looker needs the confidences now: it has weighed this wait against its use.
            mx.eval(drafted)
            for log_probs, tokens in drafted:
                confidences = np.exp(np.array(log_probs))
                levels.append(Level(np.array(tokens).tolist(), confidences.tolist()))
                goes_on = looker.deeper(levels[-1])
            if not goes_on:
                break
    return levels


def spine_tree(root: mx.array, levels: list[Level], nodes: list[Node]) -> DraftTree:
    """Return the tree of the chosen nodes, parents first, below `root` [1]."""
    place = {node: index for index, node in enumerate(nodes, start=1)}
    parents = [0] + [place.get(Node(level - 1, 0), 0) for level, _ in nodes]
    tokens = mx.array([levels[level].tokens[child] for level, child in nodes], dtype=mx.int32)
    return DraftTree.static(mx.concatenate([root, tokens]), parents)

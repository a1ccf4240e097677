"""Drafting along the greedy path, level by level, which a planner may stop by confidence.

Below the likeliest token of a level the next level is drafted; its likeliest siblings are leaves.
So the head runs once per level, on one row, and the result is a tree all the same. Where a
`ConfidenceCheck` decides, each level is copied to the host before the next one is drafted.
"""

import math
from contextlib import closing
from itertools import accumulate, islice

import mlx.core as mx
import numpy as np

from mlx_eagle.drafters.base import Drafter, DraftsStatic
from mlx_eagle.planner.planner import CHILDREN
from mlx_eagle.planner.policy import ConfidenceCheck, Level, Node, Plan
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, DraftTree


def draft_as_planned(drafter: Drafter | None, root: mx.array, plan: Plan) -> DraftTree:
    """Return the tree of a round below `root` [1]: of a fixed shape, or as a check decides."""
    if drafter is None or plan.shape == PLAIN:
        return DraftTree.chain(root)
    if isinstance(plan.shape, StaticTree):
        assert isinstance(drafter, DraftsStatic), "a request for other drafters is refused"
        return drafter.draft_static(root, plan.shape)
    if plan.check is None:
        return drafter.draft(root, plan.shape)
    levels = draft_with_checks(
        drafter, plan.check, plan.shape.depth, plan.check_interval, plan.n_children
    )
    return greedy_path_tree(root, levels, plan.check.choose())


def draft_with_checks(
    drafter: Drafter,
    check: ConfidenceCheck,
    depth: int,
    check_interval: int = 1,
    n_children: int = CHILDREN,
) -> list[Level]:
    """Draft levels, `check_interval` at a time, until the check has enough or there are `depth`."""
    levels: list[Level] = []
    with closing(drafter.greedy_path(n_children, depth)) as greedy_path:
        while drafted := list(islice(greedy_path, check_interval)):
            # The check needs the confidences now: it has weighed this wait against its use.
            mx.eval(drafted)
            for log_probs, tokens in drafted:
                confidences = np.exp(np.array(log_probs))
                levels.append(Level(np.array(tokens).tolist(), confidences.tolist()))
                goes_on = check.deeper(levels[-1])
            if not goes_on:
                break
    return levels


def greedy_path_tree(root: mx.array, levels: list[Level], nodes: list[Node]) -> DraftTree:
    """Return the tree of the chosen nodes, parents first, below `root` [1]."""
    place = {node: index for index, node in enumerate(nodes, start=1)}
    parents = [0] + [place.get(Node(level - 1, 0), 0) for level, _ in nodes]
    tokens = mx.array([levels[level].tokens[child] for level, child in nodes], dtype=mx.int32)
    above = list(accumulate((_log(level.confidences[0]) for level in levels), initial=0.0))
    scores = [above[level] + _log(levels[level].confidences[child]) for level, child in nodes]
    return DraftTree.static(mx.concatenate([root, tokens]), parents, [0.0, *scores])


def _log(confidence: float) -> float:
    """Return the logarithm of a probability, minus infinity of 0."""
    return math.log(confidence) if confidence > 0 else -math.inf

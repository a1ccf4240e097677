"""Drafting along the greedy path, level by level, which a planner may stop by confidence.

Below the likeliest token of a level the next level is drafted; its likeliest siblings are leaves.
So the head runs once per level, on one row, and the result is a tree all the same. Where a
`ConfidenceCheck` decides, each level is copied to the host before the next one is drafted. What can
be looked up in the text comes before all that, because it costs next to nothing.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_eagle.drafters.base import Drafter, DraftsStatic, Lookup
from mlx_eagle.planner.planner import CHILDREN
from mlx_eagle.planner.policy import ROOT, Level, LevelCheck, Node, Plan
from mlx_eagle.static_tree import StaticTree
from mlx_eagle.tree import PLAIN, DraftTree


def draft_as_planned(drafter: Drafter | None, root: mx.array, plan: Plan) -> DraftTree:
    """Return the tree of a round below `root` [1]: of a fixed shape, or as a check decides."""
    if drafter is None or plan.shape == PLAIN:
        return DraftTree.chain(root)
    if isinstance(plan.shape, StaticTree):
        assert isinstance(drafter, DraftsStatic), "a request for other drafters is refused"
        return drafter.draft_static(root, plan.shape)
    check, shape = plan.check, plan.shape
    if check is None:
        return drafter.draft(root, shape)
    levels, goes_on = list[Level](), True
    if (wanted := plan.lookup) != PLAIN:
        source = cast(Lookup, drafter)  # asking whether it is one takes longer than a lookup
        levels = source.lookup(wanted.depth, wanted.width, wanted.nodes)
        goes_on = check.take_lookup(levels)
        if not check.is_checked:
            return source.draft_alone(root, shape)
    if goes_on:
        drafted = draft_with_checks(
            drafter, check, shape.depth, plan.check_interval, plan.n_children
        )
        levels = [*levels, *drafted]
    return levels_to_tree(root, levels, check.choose())


def draft_with_checks(
    drafter: Drafter,
    check: LevelCheck,
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
                confidences = np.exp(np.array(log_probs)).tolist()
                parent = None if levels else ROOT  # others may have been looked up before
                levels.append(Level(np.array(tokens).tolist(), confidences, parent))
                goes_on = check.deeper(levels[-1])
            if not goes_on:
                break
    return levels


def levels_to_tree(root: mx.array, levels: Sequence[Level], nodes: Sequence[Node]) -> DraftTree:
    """Return the tree of the chosen nodes, parents first, below `root` [1].

    Levels of several sources may hold the same node, of which one stands for all.
    """
    if not nodes:
        return DraftTree.chain(root)
    tree = _Tree(levels)
    for node in nodes:
        tree.add(node)
    tokens = mx.concatenate([root, mx.array(tree.tokens, dtype=mx.int32)])
    return DraftTree.static(tokens, tree.parents, tree.scores, tree.sources)


def all_nodes(levels: Sequence[Level]) -> list[Node]:
    """Return all nodes of some levels, parents first."""
    return [
        Node(at, child) for at, level in enumerate(levels) for child in range(len(level.tokens))
    ]


class _Tree:
    """A tree that becomes of nodes: tokens and sources without the root's, parents, path scores."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.tokens, self.parents, self.scores = list[int](), [0], [0.0]
        self.sources: list[str] = []
        self._levels, self._places = levels, {ROOT: 0}
        self._children: dict[tuple[int, int], int] = {}  # by the parent's place and the token

    def add(self, node: Node) -> None:
        """Append a node whose parent is there."""
        level = self._levels[node.level]
        token, parent = level.tokens[node.child], self._place(level.below(node.level))
        self._places[node] = self._children[parent, token] = len(self.parents)
        self.tokens.append(token)
        self.sources.append(level.source)
        self.parents.append(parent)
        self.scores.append(self.scores[parent] + _log(level.confidences[node.child]))

    def _place(self, node: Node) -> int:
        """Return where a node stands, or the one of another source that stands for it."""
        if node not in self._places:
            level = self._levels[node.level]
            parent = self._place(level.below(node.level))
            self._places[node] = self._children[parent, level.tokens[node.child]]
        return self._places[node]


def _log(confidence: float) -> float:
    """Return the logarithm of a probability, minus infinity of 0."""
    return math.log(confidence) if confidence > 0 else -math.inf

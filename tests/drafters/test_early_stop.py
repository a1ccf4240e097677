"""Drafting that stops by confidence: what is checked, what is chosen, and the tree it makes."""

from collections.abc import Generator

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.drafters.base import Level as LazyLevel
from mlx_eagle.drafters.early_stop import draft_as_planned, draft_with_checks, levels_to_tree
from mlx_eagle.planner.policy import ROOT, Level, Node, Plan
from mlx_eagle.tree import PLAIN, TreeShape

LEVELS = [
    Level([10, 11, 12], [0.5, 0.25, 0.125], ROOT),
    Level([20, 21, 22], [0.25, 0.125, 0.125]),
]


class GreedyPath:
    """A drafter with the levels above; it notes how many were asked for, and that it was closed."""

    def __init__(self) -> None:
        self.made, self.is_closed = 0, False

    def greedy_path(self, k: int, depth: int) -> Generator[LazyLevel]:
        try:
            for tokens, confidences, *_ in LEVELS[:depth]:
                self.made += 1
                yield mx.log(mx.array(confidences[:k])), mx.array(tokens[:k])
        finally:
            self.is_closed = True


class ConfidenceCheck:
    is_checked = True

    def __init__(self, depth: int, nodes: list[Node]) -> None:
        self.depth, self.nodes, self.seen = depth, nodes, list[Level]()

    def deeper(self, level: Level) -> bool:
        self.seen.append(level)
        return len(self.seen) < self.depth

    def choose(self) -> list[Node]:
        return self.nodes


@pytest.mark.parametrize(("wanted", "allowed"), [(1, 2), (2, 2), (9, 1)])
def test_as_many_levels_are_drafted_as_the_looker_wants_and_the_plan_allows(
    wanted: int, allowed: int
) -> None:
    drafter, check = GreedyPath(), ConfidenceCheck(wanted, [])
    levels = draft_with_checks(drafter, check, allowed)  # type: ignore[arg-type]
    assert drafter.made == len(levels) == min(wanted, allowed)
    assert drafter.is_closed
    assert levels == check.seen == LEVELS[: len(levels)]


def test_levels_are_shown_as_many_at_a_time_as_the_plan_says() -> None:
    for check_interval, drafted in ((1, 1), (2, 2)):
        drafter, check = GreedyPath(), ConfidenceCheck(1, [])
        assert len(draft_with_checks(drafter, check, 2, check_interval)) == drafted  # type: ignore[arg-type]
        assert len(check.seen) == drafted, "levels that were drafted are all seen"
        assert drafter.is_closed


def test_where_chains_are_planned_no_siblings_are_drafted() -> None:
    check = ConfidenceCheck(2, [Node(0, 0), Node(1, 0)])
    plan = Plan(TreeShape.chain(2), check, 1, n_children=1)
    tree = draft_as_planned(GreedyPath(), mx.array([7]), plan)  # type: ignore[arg-type]
    assert [list(seen.tokens) for seen in check.seen] == [[10], [20]]
    assert tree.tokens.tolist() == [7, 10, 20] and tree.is_chain


def test_chosen_nodes_become_a_tree_with_the_greedy_path_as_parents() -> None:
    nodes = [Node(0, 0), Node(0, 2), Node(1, 0), Node(1, 1)]
    tree = levels_to_tree(mx.array([7]), LEVELS, nodes)
    assert tree.tokens.tolist() == [7, 10, 12, 20, 21]
    assert tree.parents.tolist() == [0, 0, 0, 1, 1]
    assert tree.depths.tolist() == [0, 1, 1, 2, 2]
    first, second = ([float(c) for c in level.confidences] for level in LEVELS)
    paths = [1, first[0], first[2], first[0] * second[0], first[0] * second[1]]
    assert np.exp(np.array(tree.log_probs)).tolist() == pytest.approx(paths, rel=1e-5)
    assert not tree.is_chain
    assert levels_to_tree(mx.array([7]), LEVELS, [Node(0, 0), Node(1, 0)]).is_chain


def test_a_check_may_choose_nothing() -> None:
    plan = Plan(TreeShape.chain(2), ConfidenceCheck(1, []))
    tree = draft_as_planned(GreedyPath(), mx.array([7]), plan)  # type: ignore[arg-type]
    assert tree.tokens.tolist() == [7] and tree.num_draft_tokens == 0


def test_a_plain_plan_drafts_nothing() -> None:
    drafter = GreedyPath()
    tree = draft_as_planned(drafter, mx.array([7]), Plan(PLAIN))  # type: ignore[arg-type]
    assert tree.tokens.tolist() == [7] and drafter.made == 0

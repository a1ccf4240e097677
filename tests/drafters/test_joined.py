"""A head's drafter and lookup together: trees of both, and one state."""

import mlx.core as mx
import pytest

from doubles import ScriptedDrafter, always_right
from mlx_eagle.drafters.base import Lookup
from mlx_eagle.drafters.joined import JoinedDrafter
from mlx_eagle.planner.policy import ROOT, Node
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

TEXT = [9, 5, 6, 7, 8, 2, 5, 6]
TRUTH = [0, *TEXT, 7, 3, 4, 1]
ROOT_TOKEN = mx.array(TEXT[-1:], dtype=mx.int32)


class Surest(ScriptedDrafter):
    """A head whose chain has the confidences that a test gives it."""

    confidence = 0.5

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        tree = super().draft(root, shape)
        scores = tree.depths.astype(mx.float32) * mx.log(mx.array(self.confidence))
        return DraftTree.static(tree.tokens, tree.structure(), scores.tolist())  # type: ignore[arg-type]


def joined(confidence: float = 0.5) -> JoinedDrafter:
    head = Surest(TRUTH, always_right, 100)
    head.confidence = confidence
    drafter = JoinedDrafter(head)
    drafter.observe(None, mx.array(TEXT, dtype=mx.int32))
    return drafter


def test_branches_of_the_text_join_the_tree_of_the_head_and_share_its_nodes() -> None:
    tree = joined().draft(ROOT_TOKEN, TreeShape(3, 2, 6))
    paths = [tree.tokens.tolist()]
    assert paths == [[6, 8, 7, 4, 3, 8, 2]]
    assert tree.parents.tolist() == [0, 0, 0, 2, 2, 2, 5]
    assert mx.exp(tree.log_probs).tolist() == pytest.approx([1, 0.5, 2 / 3, 0.25, 0.25, 0.5, 0.4])


def test_of_two_chains_the_one_that_promises_more_is_verified() -> None:
    shape = TreeShape.chain(3)
    assert joined(0.9).draft(ROOT_TOKEN, shape).tokens.tolist() == [6, 7, 3, 4]
    assert joined(0.1).draft(ROOT_TOKEN, shape).tokens.tolist() == [6, 7, 8, 2]


def test_where_nothing_is_found_the_tree_is_the_heads_and_a_plain_round_asks_neither() -> None:
    drafter, shape = joined(), TreeShape(2, 2, 4)
    drafter.trim(len(TEXT) - 1)  # the last two tokens are 2 5, which are new
    want = drafter.head.draft(mx.array([5]), shape)
    assert drafter.draft(mx.array([5]), shape).tokens.tolist() == want.tokens.tolist()
    assert drafter.draft(mx.array([5]), PLAIN).n_nodes == 1


def test_lookup_is_shown_apart_and_the_greedy_path_is_the_heads() -> None:
    drafter = joined()
    assert isinstance(drafter, Lookup)
    assert [level.tokens for level in drafter.lookup(2, 4, 8)] == [[7], [8]]
    assert drafter.lookup(2, 4, 8)[1].parent == Node(0, 0)
    assert drafter.lookup(2, 4, 8)[0].parent == ROOT
    assert [int(tokens[0]) for _, tokens in drafter.greedy_path(1, 3)] == [7, 3, 4]
    alone = drafter.draft_alone(ROOT_TOKEN, TreeShape.chain(2))
    assert alone.tokens.tolist() == [6, 7, 3]


def test_bytes_and_rows_are_those_of_both() -> None:
    drafter = joined()
    assert drafter.rows == drafter.ngram.rows == len(TEXT)
    assert drafter.nbytes == drafter.head.nbytes + drafter.ngram.nbytes

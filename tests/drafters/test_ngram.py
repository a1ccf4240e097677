"""Drafting by lookup: which tree follows from a text, and how likely its tokens are taken to be."""

from typing import cast

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.drafters.base import Lookup, Restorable
from mlx_eagle.drafters.early_stop import all_nodes, levels_to_tree
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.planner.policy import ROOT, Level, Node
from mlx_eagle.tree import PLAIN, TreeShape

# "5 6" three times before: twice followed by 7 8, once by 9; the last two tokens are 5 6 again.
TEXT = [5, 6, 9, 1, 5, 6, 7, 8, 2, 5, 6, 7, 8, 3, 5, 6]
ROOT_TOKEN = mx.array(TEXT[-1:], dtype=mx.int32)


def drafter_of(text: list[int]) -> NgramDrafter:
    drafter = NgramDrafter(100, 255)
    drafter.observe(None, mx.array(text, dtype=mx.int32))
    return drafter


def test_continuations_are_merged_into_one_tree() -> None:
    tree = drafter_of(TEXT).draft(ROOT_TOKEN, TreeShape(2, 2, 4))
    assert tree.tokens.tolist() == [6, 7, 9, 8, 1]
    assert tree.parents.tolist() == [0, 0, 0, 1, 2]
    assert not tree.is_chain


def test_confidence_is_the_share_of_the_weight_and_grows_with_the_match() -> None:
    levels = drafter_of(TEXT).lookup(2, 2, 4)
    assert levels[0].parent == ROOT and levels[0].tokens == [7, 9]
    assert levels[0].confidences == pytest.approx([2 / 3 * 2 / 3, 1 / 3 * 2 / 3])
    assert levels[1] == Level([8], [pytest.approx(3 / 4)], Node(0, 0), is_lookup=True)


def test_a_shorter_match_weighs_half_for_every_token_that_it_lacks() -> None:
    levels = drafter_of([1, 2, 3, 7, 8, 2, 3, 9, 4, 1, 2, 3]).lookup(1, 2, 2)
    assert levels[0].tokens == [7, 9]
    assert levels[0].confidences == pytest.approx([2 / 3 * 3 / 4, 1 / 3 * 2 / 3])


def test_the_likeliest_nodes_are_kept_and_a_chain_follows_the_likeliest_of_them() -> None:
    drafter = drafter_of(TEXT)
    chain = drafter.draft(ROOT_TOKEN, TreeShape.chain(4))
    assert chain.tokens.tolist() == [6, 7, 8, 3, 5] and chain.is_chain
    few = drafter.draft(ROOT_TOKEN, TreeShape(4, 2, 3))
    assert few.tokens.tolist() == [6, 7, 9, 8]
    assert drafter.draft(ROOT_TOKEN, PLAIN).n_nodes == 1


def test_a_long_copy_goes_deep_before_short_matches_are_tried() -> None:
    """Of what followed "9 10", one token had eight more before it that agree, the others none."""
    copied = list(range(1, 16))
    text = [*copied, *[9, 10, 50], *[9, 10, 60], *[9, 10, 70], *copied[:10]]
    levels = drafter_of(text).lookup(8, 4, 4)
    assert [level.tokens for level in levels] == [[11], [12], [13], [14]]
    assert drafter_of(text).lookup(1, 4, 4)[0].tokens == [11, 70, 60, 50]


@given(st.lists(st.integers(0, 2), min_size=16, max_size=40), st.integers(1, 12))
def test_no_node_is_kept_for_one_that_is_likelier(text: list[int], n: int) -> None:
    """The confidences of the paths of few nodes are the largest of the whole tree's."""
    drafter = drafter_of(text)

    def paths(nodes: int) -> list[float]:
        levels = drafter.lookup(3, 4, nodes)
        tree = levels_to_tree(ROOT_TOKEN, levels, all_nodes(levels))
        found = cast(list[float], mx.exp(tree.log_probs[1:]).tolist())
        return sorted(found, reverse=True)

    assert paths(n) == pytest.approx(paths(4 + 4**2 + 4**3)[:n])


def test_nothing_is_drafted_where_the_last_tokens_are_new() -> None:
    drafter = drafter_of([5, 6, 7, 6])
    assert drafter.lookup(8, 4, 8) == []
    assert drafter.draft(ROOT_TOKEN, TreeShape(4, 2, 8)).n_nodes == 1
    assert list(drafter.greedy_path(4, 8)) == []


def test_the_greedy_path_is_that_of_the_tree() -> None:
    drafter = drafter_of(TEXT)
    path = list(drafter.greedy_path(2, 3))
    assert [tokens.tolist() for _, tokens in path] == [[7, 9], [8], [3, 2]]
    assert mx.exp(path[0][0]).tolist() == pytest.approx(drafter.lookup(1, 2, 2)[0].confidences)


def test_a_drafter_that_was_trimmed_copied_or_restored_drafts_what_a_fresh_one_does() -> None:
    drafter, shape = drafter_of([*TEXT, 4, 4, 4]), TreeShape(3, 3, 6)
    assert isinstance(drafter, Lookup) and isinstance(drafter, Restorable)
    drafter.trim(len(TEXT))
    twin, restored = drafter.fork(), NgramDrafter(100, 255)
    restored.restore(drafter.arrays(), drafter.rows)
    drafter.trim(2)
    for other in (twin, restored):
        assert other.rows == len(TEXT) and other.nbytes == drafter_of(TEXT).nbytes
        want = drafter_of(TEXT).draft(ROOT_TOKEN, shape)
        assert other.draft(ROOT_TOKEN, shape).tokens.tolist() == want.tokens.tolist()


def test_a_text_of_another_length_is_not_restored() -> None:
    drafter = drafter_of(TEXT)
    with pytest.raises(ValueError, match="has 16 tokens for 17 rows"):
        NgramDrafter(100, 255).restore(drafter.arrays(), 17)
    empty = NgramDrafter(100, 255)
    empty.restore(empty.arrays(), 0)
    assert empty.rows == 0

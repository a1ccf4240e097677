"""Structure: who may attend to whom, and which structures are refused."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.tree import PLAIN, DraftTree, TreeShape, check_structure


@st.composite
def parent_lists(draw: st.DrawFn) -> list[int]:
    """Any tree whose parents come first."""
    n = draw(st.integers(1, 40))
    return [0] + [draw(st.integers(0, node - 1)) for node in range(1, n)]


def ancestors_by_walking(parents: list[int]) -> np.ndarray:
    """The obvious reference: walk from every node to the root."""
    seen = np.zeros((len(parents), len(parents)), dtype=bool)
    for node in range(len(parents)):
        at = node
        while True:
            seen[node, at] = True
            if at == 0:
                break
            at = parents[at]
    return seen


def test_the_worked_example_of_the_module() -> None:
    tree = DraftTree.static(mx.array([7, 8, 5, 9]), [0, 0, 0, 1])
    assert tree.depths.tolist() == [0, 1, 1, 2]
    assert tree.ancestors().tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, True, False, True],
    ]
    assert (tree.n_nodes, tree.num_draft_tokens, tree.max_depth) == (4, 3, 2)
    assert not tree.is_chain


@given(parent_lists())
def test_ancestors_are_the_closure_of_the_parents(parents: list[int]) -> None:
    tree = DraftTree.static(mx.zeros((len(parents),), dtype=mx.int32), parents)
    np.testing.assert_array_equal(np.array(tree.ancestors()), ancestors_by_walking(parents))


@given(parent_lists())
def test_depths_count_the_steps_to_the_root(parents: list[int]) -> None:
    assert check_structure(parents) == (ancestors_by_walking(parents).sum(axis=1) - 1).tolist()


@given(st.integers(1, 30))
def test_a_chain_is_a_causal_tree(n: int) -> None:
    tree = DraftTree.chain(mx.arange(n, dtype=mx.int32))
    np.testing.assert_array_equal(np.array(tree.ancestors()), np.tri(n, dtype=bool))
    same = DraftTree.static(tree.tokens, tree.parents.tolist())
    assert same.is_chain
    assert same.depths.tolist() == tree.depths.tolist() == list(range(n))


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([], "starts with its root"),
        ([1, 0], "starts with its root"),
        ([0, 1], "node 1 has parent 1"),
        ([0, 0, 3, 1], "node 2 has parent 3"),
        ([0, -1], "node 1 has parent -1"),
    ],
)
def test_a_list_that_is_no_tree_is_refused_by_its_first_wrong_node(
    parents: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_structure(parents)


def test_tokens_and_parents_of_different_length_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), parents need \(2,\)"):
        DraftTree.static(mx.array([1, 2, 3]), [0, 0])


def test_a_shape_cannot_ask_for_more_nodes_than_it_drafts() -> None:
    assert TreeShape(4, 4, 52).n_candidates == 4 + 3 * 16
    with pytest.raises(ValueError, match="53 nodes.*draft only 52"):
        TreeShape(4, 4, 53)


def test_a_shape_with_a_part_below_one_is_refused_unless_it_is_plain() -> None:
    assert TreeShape(0, 1, 0) == PLAIN == TreeShape.chain(0)
    for parts in [(0, 1, 1), (1, 0, 1), (2, 2, 0), (-1, 1, 1), (0, 5, 0), (0, -3, 0)]:
        with pytest.raises(ValueError, match="below 1"):
            TreeShape(*parts)


def test_a_shape_beyond_the_bounds_is_refused_with_both_bounds() -> None:
    assert TreeShape(6, 10, 255).n_candidates == 510
    with pytest.raises(ValueError, match="4096 candidates.*255 nodes"):
        TreeShape(6, 10, 256)
    with pytest.raises(ValueError, match="scores 20544 candidates"):
        TreeShape(6, 64, 16)

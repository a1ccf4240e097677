"""Trees of a fixed structure, against an enumeration of all nodes that there could be."""

import doctest
import math
from itertools import product

import numpy as np
import pytest

from mlx_eagle import static_tree
from mlx_eagle.static_tree import StaticTree, parse_tree
from mlx_eagle.tree import check_structure
from mlx_eagle.tree_shape import TreeShape


def test_the_worked_example_is_right() -> None:
    assert doctest.testmod(static_tree).failed == 0


@pytest.mark.parametrize("nodes", [1, 2, 5, 12, 40, 200])
def test_the_greedy_tree_is_the_likeliest_of_all(nodes: int) -> None:
    """Every node that there could be, ranked by the product of its accuracies."""
    rng = np.random.default_rng(nodes)
    accuracies = np.sort(rng.random((3, 4)))[:, ::-1].tolist()
    every = {
        path: math.prod(accuracies[d][r] for d, r in enumerate(path))
        for depth in (1, 2, 3)
        for path in product(range(4), repeat=depth)
    }
    tree = StaticTree.likeliest(accuracies, nodes)
    best = sorted(every.values(), reverse=True)[:nodes]
    assert len(tree.paths) == min(nodes, len(every))
    assert tree.expected_tokens(accuracies) == pytest.approx(1 + sum(best))


@pytest.mark.parametrize("shape", [TreeShape.chain(4), TreeShape(3, 3, 9), TreeShape(2, 4, 20)])
def test_structure_and_shape_agree(shape: TreeShape) -> None:
    tree = StaticTree.drawn(shape)
    depths = check_structure(tree.parents)
    assert tree.n_nodes == shape.nodes + 1
    assert tree.depth == max(depths) <= shape.depth
    assert tree.width <= shape.width
    assert [tree.level(d) for d in range(tree.depth + 1)] == [
        [node for node, depth in enumerate(depths) if depth == d] for d in range(tree.depth + 1)
    ]
    for node, children in enumerate(tree.children):
        assert [tree.parents[child] for child in children] == [node] * len(children)
        assert [tree.paths[child - 1][-1] for child in children] == list(range(len(children)))


def test_eagle_1s_tree_is_the_published_one() -> None:
    """The list of its repository, level by level, as ranks from the root."""
    listed = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002"
    paths = [tuple(map(int, node)) for node in f"{listed} 00000 00001".split()]
    tree = StaticTree.published("eagle1")
    assert list(tree.paths) == paths
    assert (tree.n_nodes, tree.depth, tree.width) == (26, 5, 4)


def test_parents_and_siblings_that_a_node_needs_come_with_it() -> None:
    assert StaticTree.of([(1, 0)]).paths == ((0,), (1,), (1, 0))


def test_what_users_write_is_read_and_written_alike() -> None:
    for text in ("4x2x8", "mc_sim_7b_63", "eagle1", "static:16"):
        assert parse_tree(text).text == text
    for text in ("static:", "static:0", "static:999", "mc_sim"):
        with pytest.raises(ValueError, match="tree"):
            parse_tree(text)

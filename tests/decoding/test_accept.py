"""The walk along the target's own tokens, against a search of all paths."""

import doctest
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.decoding import accept as module
from mlx_eagle.decoding.accept import accept


@st.composite
def verified_trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """A tree with distinct siblings over six tokens, and a choice after every node."""
    n = draw(st.integers(1, 25))
    tokens, parents = [0], [0]
    for node in range(1, n):
        parent = draw(st.integers(0, node - 1))
        used = {t for t, p in zip(tokens[1:], parents[1:], strict=True) if p == parent}
        free = sorted(set(range(6)) - used)
        if free:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent if parent < len(parents) else 0)
            same = [i for i in range(1, len(tokens)) if parents[i] == parents[-1]]
            if len({tokens[i] for i in same}) < len(same):
                tokens.pop()
                parents.pop()
    target_tokens = draw(st.lists(st.integers(0, 5), min_size=len(tokens), max_size=len(tokens)))
    return tokens, parents, target_tokens


def longest_agreeing_path(
    tokens: list[int], parents: list[int], target_tokens: list[int]
) -> list[int]:
    """The obvious reference: every root-to-node path, the longest that agrees throughout."""
    best = [0]
    for node in range(len(tokens)):
        path = [node]
        while path[0] != 0:
            path.insert(0, parents[path[0]])
        agrees = all(tokens[b] == target_tokens[a] for a, b in pairwise(path))
        if agrees and len(path) > len(best):
            best = path
    return best


def test_the_worked_example_of_the_module() -> None:
    assert doctest.testmod(module).failed == 0
    assert accept([7, 8, 5, 9], [0, 0, 0, 1], [8, 4, 1, 2]) == ([0, 1], 4)


@given(verified_trees())
def test_the_longest_agreeing_path_is_accepted(
    verified: tuple[list[int], list[int], list[int]],
) -> None:
    tokens, parents, target_tokens = verified
    path, token = accept(tokens, parents, target_tokens)
    assert path == longest_agreeing_path(tokens, parents, target_tokens)
    assert token == target_tokens[path[-1]]


def test_a_tree_of_one_node_is_plain_decoding() -> None:
    assert accept([7], [0], [3]) == ([0], 3)


def test_a_child_below_a_rejected_node_is_not_accepted() -> None:
    # 2 is what the target chose after the root, but the node that carries it hangs under the 9.
    assert accept([7, 9, 2], [0, 0, 1], [2, 2, 2]) == ([0], 2)

"""Which drafted tokens are accepted: the walk from the root along the target's own choices.

A pure function. The target has chosen one token after every node (its argmax, or its seeded
draw); a child is accepted if it is that choice. Drafted children are fixed given the context, so
the walk is lossless both greedily and when sampling: the reasoning is in EAGLE (arXiv 2401.15077),
section 3.3, reduced to one draw per node.

Worked example, the tree of `tree.py`, whose target chose 8 after the root and 4 after the 8:

    >>> accept([7, 8, 5, 9], [0, 0, 0, 1], [8, 4, 1, 2])
    Accepted(path=[0, 1], token=4)
"""

from collections.abc import Sequence
from typing import NamedTuple


class Accepted(NamedTuple):
    """The accepted nodes, root first, and the token that the target chose after the last one."""

    path: list[int]
    token: int


def accept(tokens: Sequence[int], parents: Sequence[int], target_tokens: Sequence[int]) -> Accepted:
    """Walk from the root to the deepest node that agrees with the target.

    Args:
        tokens: N drafted token ids, the root first.
        parents: N node indices; parents come before children.
        target_tokens: N token ids, what the target puts after each node.
    """
    path = [0]
    for node in range(1, len(tokens)):
        # Parents come first, so one pass meets the nodes of the path in order.
        if parents[node] == path[-1] and tokens[node] == target_tokens[path[-1]]:
            path.append(node)
    return Accepted(path, target_tokens[path[-1]])

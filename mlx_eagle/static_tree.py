"""Trees whose structure is fixed before anything is drafted: which child of which node there is.

A node is written as the ranks from the root to it: `(0, 2)` is the third child of the root's first.
Structure only; tokens are put in by a drafter. Built greedily from how often each rank is right,
as Medusa builds its trees (arXiv 2401.10774, section 2.3.3).

Worked example, two depths whose first tokens are right in 0.6 and 0.5 of all cases, whose second
ones are in 0.2 and 0.1:

    >>> StaticTree.likeliest([[0.6, 0.2], [0.5, 0.1]], 3).paths
    ((0,), (1,), (0, 0))
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mlx_eagle.tree_shape import MAX_NODES, TreeShape

Path = tuple[int, ...]

# Trees that were published, by how many children their inner nodes have; those that are not named
# have none. mc_sim_7b_63 is Medusa's for Vicuna 7B, from the accuracies of its heads (its
# repository's medusa_choices.py). eagle1 is EAGLE-1's, 26 nodes with the root (arXiv 2401.15077,
# figure 6; choices.py of its repository, where it has kept the name of Medusa's).
PUBLISHED: dict[str, dict[Path, int]] = {
    "mc_sim_7b_63": {
        (): 10,
        **{(0,): 10, (1,): 7, (2,): 3, (3,): 2},
        **{(rank,): 1 for rank in range(4, 10)},
        **{(0, 0): 10, (0, 1): 3, (0, 2): 2},
        **{(0, rank): 1 for rank in range(3, 8)},
        **{(1, 0): 2, (2, 0): 1, (0, 0, 0): 2},
    },
    "eagle1": {
        (): 4,
        **{(0,): 3, (1,): 2, (2,): 2, (3,): 1},
        **{(0, 0): 3, (0, 1): 2, (0, 2): 2, (1, 0): 1},
        **{(0, 0, 0): 3, (0, 0, 0, 0): 2},
    },
}
MEASURED = "static:"  # stands before the nodes of a tree that is built from what was measured

# Of tokens that are drawn without replacement: how often the first one is taken by the target, and
# how often each further one where those before it were not.
DRAWN = 0.6


@dataclass(frozen=True)
class StaticTree:
    """The nodes below the root, level by level, siblings side by side.

    Attributes:
        paths: of every node, the ranks from the root to it; its parent and the siblings of lower
            rank are there as well.
        text: what users call it.
    """

    paths: tuple[Path, ...]
    text: str = "static"

    @classmethod
    def of(cls, paths: Sequence[Sequence[int]]) -> "StaticTree":
        """Return the tree of these nodes in any order, with the siblings and parents they need."""
        needed: set[Path] = set()
        for path in map(tuple, paths):
            for depth, rank in enumerate(path):
                needed |= {(*path[:depth], lower) for lower in range(rank + 1)}
        return cls(tuple(sorted(needed, key=lambda path: (len(path), path))))

    @classmethod
    def published(cls, name: str) -> "StaticTree":
        """Return the tree that was published under a name."""
        paths = [(*path, rank) for path, n in PUBLISHED[name].items() for rank in range(n)]
        return cls(cls.of(paths).paths, name)

    @classmethod
    def likeliest(cls, accuracies: Sequence[Sequence[float]], nodes: int) -> "StaticTree":
        """Return the tree of the likeliest `nodes` nodes, fewer where there are no more.

        Args:
            accuracies: by depth, how often the token of each rank is the right one, given that
                those above it are; never rising with the rank.
            nodes: without the root.
        """
        chosen: list[Path] = []
        open_nodes: list[tuple[float, Path]] = [(-accuracies[0][0], (0,))]
        while open_nodes and len(chosen) < nodes:
            value, path = heapq.heappop(open_nodes)
            chosen.append(path)
            depth, rank = len(path), path[-1]
            ranks = accuracies[depth - 1]
            if rank + 1 < len(ranks) and ranks[rank] > 0:
                sibling = value / ranks[rank] * ranks[rank + 1]
                heapq.heappush(open_nodes, (sibling, (*path[:-1], rank + 1)))
            if depth < len(accuracies):
                heapq.heappush(open_nodes, (value * accuracies[depth][0], (*path, 0)))
        return cls.of(chosen)

    @classmethod
    def drawn(cls, shape: TreeShape) -> "StaticTree":
        """Return a tree of this shape for tokens that are drawn, so that no token may shape it."""
        ranks = [DRAWN * (1 - DRAWN) ** rank for rank in range(shape.width)]
        return cls.likeliest([ranks] * shape.depth, shape.nodes)

    @property
    def n_nodes(self) -> int:
        """Nodes with the root."""
        return len(self.paths) + 1

    @property
    def depth(self) -> int:
        """Levels below the root."""
        return len(self.paths[-1])

    @property
    def width(self) -> int:
        """Ranks that are used at most."""
        return 1 + max(path[-1] for path in self.paths)

    @cached_property
    def parents(self) -> list[int]:
        """The parent of every node, the root being node 0 and its own parent."""
        place = {(): 0} | {path: node for node, path in enumerate(self.paths, start=1)}
        return [0, *(place[path[:-1]] for path in self.paths)]

    @cached_property
    def children(self) -> list[list[int]]:
        """The children of every node, by rank."""
        return children_of(self.parents)

    def level(self, depth: int) -> list[int]:
        """Return the nodes of a level; level 0 is the root."""
        if depth == 0:
            return [0]
        return [node for node, path in enumerate(self.paths, start=1) if len(path) == depth]

    def inner(self, depth: int) -> list[int]:
        """Return the nodes of a level that have children."""
        return [node for node in self.level(depth) if self.children[node]]

    def expected_tokens(self, accuracies: Sequence[Sequence[float]]) -> float:
        """Return the mean tokens of a round, the target's own included."""
        rates = (
            math.prod(accuracies[depth][rank] for depth, rank in enumerate(path))
            for path in self.paths
        )
        return 1 + sum(rates)


@dataclass(frozen=True)
class MeasuredTree:
    """The likeliest tree of so many nodes, by accuracies that `mlx-eagle calibrate` measures."""

    nodes: int

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_NODES:
            raise ValueError(f"a static tree has 1 to {MAX_NODES} nodes, not {self.nodes}")

    @property
    def text(self) -> str:
        """What users call it."""
        return f"{MEASURED}{self.nodes}"


Shape = TreeShape | StaticTree  # what a round can draft
Tree = Shape | MeasuredTree  # what can be asked for


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """Return the children of every node, in order, by the parent of each; the root is node 0."""
    found: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], start=1):
        found[parent].append(node)
    return found


def parse_tree(text: str) -> Tree:
    """Return the tree that a user wrote: sizes, a published name, or `static:63`.

    Raises:
        ValueError: if it is none; its message says why.
    """
    if text in PUBLISHED:
        return StaticTree.published(text)
    if not text.startswith(MEASURED):
        return TreeShape.parse(text)
    nodes = text.removeprefix(MEASURED)
    if not (nodes.isascii() and nodes.isdigit()):
        raise ValueError(f"{text!r} is no tree; write static:N, such as static:16")
    return MeasuredTree(int(nodes))

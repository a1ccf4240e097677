"""`DraftTree`: the tokens one round proposes, and what follows from their order.

Node 0 is the root, the newest committed token, whose keys and values are not cached yet. Parents
come before children. A chain is a tree; plain decoding is the tree of one node. This module knows
arrays only: no model, no cache. How large a tree may become, `tree_shape.py` says. Follows EAGLE-2
(arXiv 2406.16858), section 4.

Worked example, the root 7 with two continuations, "8 then 9" and "5":

    tokens   [7, 8, 5, 9]        7 ── 8 ── 9
    parents  [0, 0, 0, 1]        └─── 5
    depths   [0, 1, 1, 2]
    ancestors  1 . . .           each row: the nodes that this node may attend to
               1 1 . .
               1 . 1 .
               1 1 . 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from mlx_eagle.tree_shape import MAX_CANDIDATES, MAX_NODES, PLAIN, TreeShape

__all__ = [
    "MAX_CANDIDATES",
    "MAX_NODES",
    "PLAIN",
    "DraftTree",
    "TreeShape",
    "check_structure",
]


@dataclass(frozen=True)
class DraftTree:
    """Proposed tokens with their parents; the arrays may still be lazy.

    Attributes:
        tokens: [N] int32, target ids.
        parents: [N] int32; the root is its own parent.
        depths: [N] int32; 0 for the root.
        log_probs: [N] float32, the drafter's log-probability of the path from the root.
        max_depth: a bound on `depths` that is known without reading them.
        is_chain: True if every node is the only child of the node before it.
        draft_log_probs: [N, W] float32, by which the children of every node were drawn; None where
            they were not drawn but chosen.
        sources: by node without the root, what proposed it, where that is more than one head.
    """

    tokens: mx.array
    parents: mx.array
    depths: mx.array
    log_probs: mx.array
    max_depth: int
    is_chain: bool
    draft_log_probs: mx.array | None = None
    sources: tuple[str, ...] = ()

    @classmethod
    def chain(cls, tokens: mx.array, log_probs: mx.array | None = None) -> "DraftTree":
        """Return the chain of tokens [N], the root first."""
        n = tokens.shape[0]
        nodes = mx.arange(n, dtype=mx.int32)
        scores = mx.zeros((n,)) if log_probs is None else log_probs
        parents = mx.maximum(nodes - 1, 0)
        return cls(tokens, parents, nodes, scores, max_depth=n - 1, is_chain=True)

    @classmethod
    def static(
        cls,
        tokens: mx.array,
        parents: Sequence[int],
        log_probs: Sequence[float] | None = None,
        sources: Sequence[str] = (),
    ) -> "DraftTree":
        """Return a tree whose structure is known in advance.

        Args:
            tokens: [N] int32, the root first.
            parents: N node indices; the root is its own parent.
            log_probs: N log-probabilities of the paths from the root; None where nobody knows.
            sources: N - 1 names of what proposed the nodes; none for one head.

        Raises:
            ValueError: if the parents do not describe a tree in which parents come first.
        """
        depths = check_structure(parents)
        if tokens.shape != (len(depths),):
            raise ValueError(f"tokens have shape {tokens.shape}, parents need ({len(depths)},)")
        return cls(
            tokens,
            mx.array(list(parents), dtype=mx.int32),
            mx.array(depths, dtype=mx.int32),
            mx.array(list(log_probs or [0.0] * len(depths)), dtype=mx.float32),
            max_depth=max(depths),
            is_chain=list(parents) == [max(i - 1, 0) for i in range(len(depths))],
            sources=tuple(sources),
        )

    @property
    def n_nodes(self) -> int:
        """Rows to verify, the root included."""
        return self.tokens.shape[0]

    @property
    def num_draft_tokens(self) -> int:
        """Nodes without the root."""
        return self.n_nodes - 1

    def structure(self) -> list[int]:
        """Return the parents as integers; only what was drafted dynamically is waited for."""
        if self.is_chain:
            return [max(node - 1, 0) for node in range(self.n_nodes)]
        return cast(list[int], self.parents.tolist())

    def ancestors(self) -> mx.array:
        """Return [N, N] bool: entry (i, j) says that j is i or an ancestor of i."""
        own = mx.eye(self.n_nodes, dtype=mx.bool_)
        seen = own
        for _ in range(self.max_depth):
            seen = own | seen[self.parents]
        return seen


def check_structure(parents: Sequence[int]) -> list[int]:
    """Return the depth of every node, or raise ValueError naming the first node that is wrong."""
    if not parents or parents[0] != 0:
        raise ValueError("a tree starts with its root, which is its own parent: parents[0] == 0")
    depths = [0]
    for node, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < node:
            raise ValueError(f"node {node} has parent {parent}; parents come before children")
        depths.append(depths[parent] + 1)
    return depths

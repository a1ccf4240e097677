"""A head's drafter, and n-gram lookup whose branches join its tree.

Where a planner decides, it is shown what was looked up before the head drafts, and says whether the
head drafts beside it at all (`planner/round_plan.py`). A tree of a fixed shape holds the likeliest
nodes of both, by their confidences, which takes reading the head's tree on the host.
"""

import copy
from collections.abc import Generator, Sequence
from typing import Self, cast

import mlx.core as mx

from mlx_eagle.drafters.base import Drafter, Restorable
from mlx_eagle.drafters.base import Level as LazyLevel
from mlx_eagle.drafters.early_stop import all_nodes, levels_to_tree
from mlx_eagle.drafters.ngram import NgramDrafter
from mlx_eagle.planner.policy import Level
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

HEAD, NGRAM = "head.", "ngram."  # whose arrays they are, in a file


class JoinedDrafter:
    """The drafter of a head, and the text that it has observed."""

    def __init__(self, head: Drafter) -> None:
        self.head = head
        self.ngram = NgramDrafter(head.max_width, head.max_depth)

    @property
    def max_width(self) -> int:
        """The head's draft vocabulary."""
        return self.head.max_width

    @property
    def max_depth(self) -> int:
        """What the head can draft."""
        return self.head.max_depth

    @property
    def rows(self) -> int:
        """Committed tokens observed, by both."""
        return self.head.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the head's cache, and of the text with its index."""
        return self.head.nbytes + self.ngram.nbytes

    @property
    def buffers(self) -> Sequence[mx.array]:
        """The arrays to evaluate when the head must be up to date."""
        return self.head.buffers

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        """Let both take in L tokens: taps [L, A * D], next_tokens [L]."""
        self.head.observe(taps, next_tokens)
        self.ngram.observe(None, next_tokens)

    def lookup(self, depth: int, width: int, nodes: int) -> list[Level]:
        """Return what the text suggests; see `base.Lookup`."""
        return self.ngram.lookup(depth, width, nodes)

    def draft_alone(self, root: mx.array, shape: TreeShape) -> DraftTree:
        """Propose the head's tree below `root` [1]."""
        return self.head.draft(root, shape)

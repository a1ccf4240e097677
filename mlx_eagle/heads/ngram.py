"""What stands where a head does if drafts are looked up: nothing to load, or a head and lookup.

There are no weights and no forward pass here; how tokens are found is in `drafters/ngram.py`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.nn as nn

from mlx_eagle.planner.policy import Sources
from mlx_eagle.tree_shape import MAX_NODES

if TYPE_CHECKING:
    from mlx_eagle.heads.draft_model import DraftModel
    from mlx_eagle.heads.load import AnyHead, Head


@dataclass(frozen=True)
class NgramConfig:
    """What is asked of every head's configuration."""

    algorithm: str
    taps: tuple[int, ...] = ()


class NgramHead(nn.Module):
    """No head: drafts are what followed the same tokens earlier in the text; for every target."""

    default_window = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = NgramConfig("ngram")

    def __bool__(self) -> bool:
        """Say that it is there: a module is a dictionary, and one without weights an empty one."""
        return True

    @property
    def max_depth(self) -> int:
        """A copy may be as long as a tree can be deep."""
        return MAX_NODES


class JoinedHead(nn.Module):
    """A head or a draft model, and lookup whose branches join its tree."""

    def __init__(self, head: "Head | DraftModel") -> None:
        super().__init__()
        self.head = head
        self.config = NgramConfig("joined", tuple(head.config.taps))

    @property
    def max_depth(self) -> int:
        """What the head can draft; copies may be longer."""
        return self.head.max_depth

    @property
    def default_window(self) -> int:
        """Tokens that the head attends to where nobody says; 0 for all."""
        return self.head.default_window


def sources_of(head: nn.Module) -> Sources:
    """Return where what is drafted with a head, or in its place, comes from."""
    return Sources(not isinstance(head, NgramHead), isinstance(head, NgramHead | JoinedHead))


def without_lookup(head: "AnyHead") -> "Head | DraftModel | NgramHead":
    """Return what is beside the lookup, if anything is."""
    return head.head if isinstance(head, JoinedHead) else head

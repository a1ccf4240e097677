"""What decides on trees, seen from the loop: what it is asked, and what it is told.

`planner.py` is the policy that adapts; `FixedShape` is the one that does not. No arrays, no model.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mlx_eagle.tree import PLAIN, TreeShape


class Level(NamedTuple):
    """The drafted children of one node: tokens and confidences, the likeliest first."""

    tokens: Sequence[int]
    confidences: Sequence[float]


class Node(NamedTuple):
    """A drafted node: the `child`-th of its level; its parent is child 0 of the level before."""

    level: int
    child: int


class Forecast(NamedTuple):
    """What a round was expected to give: tokens, seconds, and of what shape."""

    tokens: float
    draft_seconds: float
    verify_seconds: float
    n_rows: int
    depth: int


class Review(NamedTuple):
    """A round in which something was drafted: what was expected, and whether it began well.

    `first_right`: the likeliest first token was the target's, be it verified or not.
    """

    forecast: Forecast
    first_right: bool


class Outcome(NamedTuple):
    """What a round gave.

    Attributes:
        tokens: what was emitted, the target's own last token included.
        draft_seconds: None where drafting was not timed apart.
        verify_seconds: of verification; of the whole round where drafting was not timed apart;
            None where something else took part of the time.
        levels: what was drafted blindly, as far as it was a chain.
    """

    tokens: Sequence[int]
    draft_seconds: float | None
    verify_seconds: float | None
    levels: Sequence[Level] = ()


class ConfidenceCheck(Protocol):
    """Decides, level by level, on what has been drafted."""

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""


class Plan(NamedTuple):
    """What a round drafts: a tree of this shape, or what the check decides, as deep at most.

    The check is shown `check_interval` levels at a time, since every time is a copy to the host:
    of every level the `n_children` likeliest tokens.
    """

    shape: TreeShape
    check: ConfidenceCheck | None = None
    check_interval: int = 1
    n_children: int = 1


class Policy(Protocol):
    """Says what every round drafts, and is told what came of it."""

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""

    def record(self, outcome: Outcome) -> Review | None:
        """Learn from the round that was planned last; return how it went, if it drafted."""


class FixedShape:
    """The same tree every round."""

    def __init__(self, shape: TreeShape) -> None:
        self._plan = Plan(shape)

    def plan(self, context: int) -> Plan:
        """Return the shape, whatever the context."""
        return self._plan

    def stays_plain(self) -> bool:
        """Say whether the shape is plain decoding."""
        return self._plan.shape == PLAIN

    def record(self, outcome: Outcome) -> None:
        """Learn nothing."""

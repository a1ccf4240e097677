"""What decides on trees, seen from the loop: `Planner` adapts, `FixedShape` does not."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mlx_eagle.static_tree import Shape
from mlx_eagle.tree import PLAIN, TreeShape

HEAD, NGRAM = "head", "n-gram"  # in statistics


class Sources(NamedTuple):
    """Where drafted tokens come from: a head, the text itself (n-gram lookup), or both."""

    head: bool = True
    lookup: bool = False


class Node(NamedTuple):
    """A drafted node: the `child`-th of its level."""

    level: int
    child: int


ROOT = Node(-1, 0)


class Level(NamedTuple):
    """The drafted children of one node: tokens and confidences, the likeliest first.

    `parent` is that node; None: child 0 of the level before, or the root if there is none.
    `is_lookup` says that they were looked up in the text, not drafted by a head.
    """

    tokens: Sequence[int]
    confidences: Sequence[float]
    parent: Node | None = None
    is_lookup: bool = False

    @property
    def source(self) -> str:
        """What proposed it, for statistics."""
        return NGRAM if self.is_lookup else HEAD

    def below(self, index: int) -> Node:
        """Return the parent of this level, which is the `index`-th of its round."""
        return Node(index - 1, 0) if self.parent is None else self.parent


class Forecast(NamedTuple):
    """What a round was expected to give: tokens, seconds, and of what shape."""

    tokens: float
    draft_seconds: float
    verify_seconds: float
    n_rows: int
    depth: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole round."""
        return self.draft_seconds + self.verify_seconds


class Review(NamedTuple):
    """A round that drafted: what was expected, and whether its likeliest first token was right.

    `source` proposed that token: the head, wherever it drafted.
    """

    forecast: Forecast
    first_right: bool
    source: str = HEAD


class Outcome(NamedTuple):
    """What a round gave; `verify_seconds` are all of it where drafting was not timed apart."""

    tokens: Sequence[int]  # emitted, the target's own last token included
    draft_seconds: float | None
    verify_seconds: float | None  # None where something else took part of the time
    levels: Sequence[Level] = ()  # the chain that was drafted without checking
    planned: object = None  # that of the plan; None: the newest plan's


class LevelCheck(Protocol):
    """Decides, level by level, how deep to draft."""

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""


class ConfidenceCheck(LevelCheck, Protocol):
    """Decides on what has been looked up and drafted."""

    @property
    def is_checked(self) -> bool:
        """Whether it looks at what is drafted; if not, a head drafts the shape of the plan."""

    def take_lookup(self, levels: Sequence[Level]) -> bool:
        """Take in what was looked up, before anything is drafted; say whether to draft as well."""

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""


class Plan(NamedTuple):
    """What a round drafts: a tree of this shape, or what the check decides, as deep at most."""

    shape: Shape
    check: ConfidenceCheck | None = None
    check_interval: int = 1  # levels that the check is shown at a time
    n_children: int = 1  # likeliest tokens of every level that it is shown
    planned: object = None  # what the policy keeps of the round, to be handed back in its outcome
    lookup: TreeShape = PLAIN  # how much is looked up, where the check is shown that


class Policy(Protocol):
    """Says what every round drafts, and is told what came of it."""

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""

    def record(self, outcome: Outcome) -> Review | None:
        """Learn from a round that was planned; return how it went, if it drafted."""


class FixedShape(NamedTuple):
    """The same tree every round."""

    shape: Shape

    def plan(self, context: int) -> Plan:
        """Return the shape, whatever the context."""
        return Plan(self.shape)

    def stays_plain(self) -> bool:
        """Say whether the shape is plain decoding."""
        return self.shape == PLAIN

    def record(self, outcome: Outcome) -> None:
        """Learn nothing."""

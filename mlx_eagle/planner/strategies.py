"""What each way of drafting is expected to give on this text, from what was drafted of late.

There are three ways: to look at the confidences of every level before drafting the next; to draft
some levels and look once; to draft a chain blindly. A look costs a wait for the device and saves
levels and rows that do not pay. Every draft tells about all three: what it saw is what the others
would have seen, and what it did not draft is continued at the usual acceptance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import Level, Node

LEAST_DRAFTING = 0.1  # share of its time that drafting takes without waits, whatever was measured


class Mean:
    """An exponential mean that is a plain mean at first; it may start as if of `n` values."""

    def __init__(self, rate: float, value: float = 0.0, n: int = 0) -> None:
        self.rate, self.value, self.n = rate, value, n

    def add(self, value: float, weight: float = 0.0) -> None:
        """Take in a value, with `weight` at least."""
        self.n += 1
        self.value += max(self.rate, weight, 1 / self.n) * (value - self.value)


class Pace:
    """Tokens and seconds per round of one way to decode, and so its tokens per second."""

    def __init__(self, rate: float) -> None:
        self.tokens, self.seconds = Mean(rate), Mean(rate)

    def add(self, tokens: float, seconds: float, weight: float = 0.0) -> None:
        """Take in a round, with `weight` at least."""
        self.tokens.add(tokens, weight)
        self.seconds.add(seconds, weight)

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before the first round."""
        return self.tokens.value / self.seconds.value if self.seconds.n else 0.0


@dataclass
class Draft:
    """What has been drafted in a round so far, by expected acceptance.

    Attributes:
        context: cached tokens.
        levels: the drafted levels.
        nodes: path acceptance of every node, the likeliest first, parents before children.
        reach: path acceptance of the greedy path, by level.
    """

    context: int
    levels: list[Level] = field(default_factory=list)
    nodes: list[tuple[float, Node]] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)

    def add(self, level: Level, acceptance: Acceptance) -> list[float]:
        """Add a level below the greedy path; returns how likely each child is, given its parent."""
        rates, above = acceptance.children(level.confidences), self.reach[-1] if self.reach else 1.0
        at = len(self.levels)
        self.levels.append(level)
        self.nodes += [(above * rate, Node(at, child)) for child, rate in enumerate(rates)]
        self.nodes.sort(key=lambda entry: (-entry[0], entry[1]))
        self.reach.append(above * rates[0])
        return rates

    def paths(self, depth: int) -> list[float]:
        """Return the path acceptance of all nodes of the first `depth` levels, likeliest first."""
        return [path for path, node in self.nodes if node.level < depth]


class Way(NamedTuple):
    """A way to draft: `depth` levels at most, checked `check_interval` at a time; 0: unchecked."""

    depth: int
    check_interval: int

    def seconds(self, costs: LiveCosts, depth: int) -> float:
        """Return what drafting `depth` levels in this way costs."""
        n_looks, looking = (
            -(-depth // self.check_interval) if self.check_interval else 0,
            costs.draft(depth),
        )
        return max(looking - (depth - n_looks) * costs.sync, LEAST_DRAFTING * looking)


class Tree(NamedTuple):
    """The best tree of some drafted levels: its worth and size in tokens, its rows."""

    worth: float
    tokens: float
    n_rows: int


def best_tree(
    paths: Sequence[float], context: int, costs: LiveCosts, *, price: float, drafting: float
) -> Tree:
    """Return the best of all trees over drafted nodes, the root alone included.

    Args:
        paths: path acceptance of every drafted node, the likeliest first.
        context: cached tokens.
        costs: what rows cost; only measured numbers of rows are considered.
        price: tokens that a second is worth.
        drafting: seconds that were spent on drafting.
    """
    best, tokens, taken = Tree(float("-inf"), 1.0, 1), 1.0, 0
    for n_rows in costs.rows:
        if n_rows > len(paths) + 1:
            break
        tokens += sum(paths[taken : n_rows - 1])
        taken = n_rows - 1
        worth = tokens - price * (drafting + costs.verify(n_rows, context))
        if worth > best.worth:
            best = Tree(worth, tokens, n_rows)
    return best


class Prospects:
    """The pace that each way of drafting would have, in exponential means over rounds."""

    RATE = 0.1
    GUESSED = 8  # levels that the first guess counts for
    DEAR = 0.002  # waits below this share of a plain token are always worth a look

    def __init__(
        self, costs: LiveCosts, max_depth: int, n_children: int, first_guess: float
    ) -> None:
        self.costs = costs
        self.looking = Pace(self.RATE)  # at every level
        self._every_level = Way(max_depth, 1)
        # How likely the children of a level are. A guess that a single level could replace might
        # forbid to look at any other for ever.
        self._usual = [Mean(0.05, first_guess, self.GUESSED)]
        self._usual += [Mean(0.05) for _ in range(n_children - 1)]
        self._once = [Pace(self.RATE) for _ in range(max_depth)]
        self._reach = [Mean(self.RATE) for _ in range(max_depth)]

    def see(self, rates: Sequence[float]) -> None:
        """Take in how likely the children of a level are, given their parent."""
        for mean, rate in zip(self._usual, rates, strict=False):
            mean.add(rate)

    def beyond(self, draft: Draft, n_levels: int) -> list[list[float]]:
        """Return the path acceptance of the nodes of levels not drafted yet, as they usually are.

        Args:
            draft: what has been drafted.
            n_levels: how many levels to imagine below.
        """
        usual = [mean.value for mean in self._usual]
        levels, above = [], draft.reach[-1]
        for _ in range(n_levels):
            levels.append([above * rate for rate in usual])
            above *= usual[0]
        return levels

    def learn(self, draft: Draft, price: float, weight: float = 0.0) -> None:
        """Take in what was drafted in a round: what would the other ways have made of it?

        Args:
            draft: what was drafted, each level looked at.
            price: tokens that a second was worth.
            weight: least weight of this round.
        """
        known = len(draft.reach)
        imagined = self.beyond(draft, len(self._reach) - known)
        reach = [*draft.reach, *(level[0] for level in imagined)]
        for mean, value in zip(self._reach, reach, strict=True):
            mean.add(value, weight)
        if self.costs.sync < self.DEAR * self.costs.plain(draft.context):
            return
        for depth, pace in enumerate(self._once, start=1):
            more = [path for level in imagined[: max(0, depth - known)] for path in level]
            paths = sorted(draft.paths(depth) + more, reverse=True)
            drafting = Way(depth, depth).seconds(self.costs, depth)
            tree = best_tree(paths, draft.context, self.costs, price=price, drafting=drafting)
            seconds = drafting + self.costs.verify(tree.n_rows, draft.context)
            pace.add(tree.tokens, seconds, weight)

    def best(self, context: int) -> tuple[float, Way]:
        """Return the tokens per second of the best way, and the way."""
        best = (self.looking.rate, self._every_level)
        for depth, pace in enumerate(self._once, start=1):
            best = max(best, (pace.rate, Way(depth, depth)))
        tokens = 1.0
        for depth, reach in enumerate(self._reach, start=1):
            tokens += reach.value
            way = Way(depth, 0)
            if reach.n and depth + 1 in self.costs.rows:
                seconds = way.seconds(self.costs, depth) + self.costs.verify(depth + 1, context)
                best = max(best, (tokens / seconds, way))
        return best

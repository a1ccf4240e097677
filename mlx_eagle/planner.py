"""Which tree pays, round by round: measured cost times live acceptance, no drafting included.

A round is worth its expected tokens less its seconds at the going rate: in the time of a long
round a shorter one would be over and the next one begun. With the rate that is reached in the long
run as the price, the best of every round is the best of all (a fractional programme; W. Dinkelbach,
Management Science 13, 1967). Expected tokens are sums of path probabilities, so the best N nodes
are the N most probable ones (OPT-Tree, TACL 2025; CaDDTree, arXiv 2606.01813), for every N that
was measured: a curve of costs may have steps.

Drafting follows the likeliest token and keeps its likeliest siblings as leaves. After every level
the confidences are read back, and drafting stops where one to three more levels would not pay.
Reading back costs too; where it costs more than it gives, chains are drafted blindly. And where
drafting itself does not pay, it stops for a while that doubles as long as nothing changes.

Pure arithmetic on floats: no arrays, no model. The simulator runs this very code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from mlx_eagle.acceptance import Acceptance
from mlx_eagle.costs import LiveCosts
from mlx_eagle.tree import PLAIN, TreeShape

CHILDREN = 4  # likeliest tokens that are considered at every level
DEEPEST = 10  # levels that are ever drafted
LOOKAHEAD = 3  # levels that are imagined before drafting stops
PROMISING = 1.1  # speed-up that a perfect head must promise, for drafting to be tried at all
CERTAIN = 0.98  # acceptance of every token, if a head were as good as heads can be


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


class Looker(Protocol):
    """Decides, level by level, on what has been drafted."""

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""


class Plan(NamedTuple):
    """What a round drafts: a tree of this shape, or what the looker decides, as deep at most."""

    shape: TreeShape
    looker: Looker | None = None


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


class Mean:
    """An exponential mean that is a plain mean at first."""

    def __init__(self, rate: float) -> None:
        self.rate, self.value, self.n = rate, 0.0, 0

    def add(self, value: float, weight: float = 0.0) -> None:
        """Take in a value, with `weight` at least."""
        self.n += 1
        self.value += max(self.rate, weight, 1 / self.n) * (value - self.value)


@dataclass
class _Pace:
    """Tokens and seconds per round of one way to decode, and so its tokens per second."""

    tokens: Mean
    seconds: Mean

    def add(self, tokens: float, seconds: float, weight: float = 0.0) -> None:
        self.tokens.add(tokens, weight)
        self.seconds.add(seconds, weight)

    @property
    def rate(self) -> float:
        return self.tokens.value / self.seconds.value if self.seconds.n else 0.0


@dataclass
class _Draft:
    """What has been drafted in a round so far, by expected acceptance."""

    context: int
    looks: bool = True
    levels: list[Level] = field(default_factory=list)
    nodes: list[tuple[float, Node]] = field(default_factory=list)  # by path acceptance
    reach: list[float] = field(default_factory=list)  # path acceptance of the spine, by level

    def add(self, level: Level, rates: Sequence[float]) -> None:
        """Add a level below the spine, whose children are accepted at these rates."""
        at = len(self.levels)
        self.levels.append(level)
        above = self.spine
        self.nodes += [(above * rate, Node(at, child)) for child, rate in enumerate(rates)]
        self.nodes.sort(key=lambda entry: (-entry[0], entry[1]))  # parents before children
        self.reach.append(above * rates[0])

    @property
    def spine(self) -> float:
        """Path acceptance of the newest level's first child."""
        return self.reach[-1] if self.reach else 1.0


class Planner:
    """Chooses every round's tree and learns from every round; one per pair and way of sampling."""

    PATIENCE = 4  # rounds before drafting may be given up
    SHORTEST_WAIT = 4  # tokens of plain decoding between two tries
    TRYING = 0.005  # share of the time that tries may take, once waits have doubled
    SURPRISE = 0.3  # acceptance that was expected of a token that is worth another try soon
    REFRESH = 16  # blind rounds between two looks

    def __init__(self, costs: LiveCosts, acceptance: Acceptance, max_depth: int) -> None:
        self.costs, self.acceptance = costs, acceptance
        self.max_depth = min(max_depth, costs.rows[-1] - 1, DEEPEST)
        self.forecast: Forecast | None = None
        self.n_drafted = 0  # rounds
        self._draft = _Draft(0)
        self._next_first = Mean(0.05)  # acceptance of a level's first child, below the root's
        self._overall = _Pace(Mean(0.03), Mean(0.03))
        self._looking = _Pace(Mean(0.08), Mean(0.08))
        self._reach = [Mean(0.05) for _ in range(self.max_depth)]
        self._wait, self._next_wait = 0, self.SHORTEST_WAIT
        self._is_trying = False  # the round after a wait
        self._blind_left = 0

    # What to do

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""
        self._draft = _Draft(context)
        self.forecast = None
        if self._wait:
            self._wait -= 1
            return Plan(PLAIN)
        if self._blind_left:
            self._blind_left -= 1
            self._draft.looks = False
            return Plan(TreeShape.chain(self._best_blind(context)[1]))
        return Plan(TreeShape.chain(self.max_depth), self)

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""
        return self._wait > 0

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""
        draft = self._draft
        rates = self.acceptance.children(level.confidences)
        if draft.levels:
            self._next_first.add(rates[0])
        draft.add(level, rates)
        depth = len(draft.levels)
        if depth >= self.max_depth:
            return False
        known = [path for path, _ in draft.nodes]
        worth = self._best(known, depth)[0]
        imagined: list[float] = []
        for more in range(1, min(LOOKAHEAD, self.max_depth - depth) + 1):
            imagined.append(draft.spine * self._next_first_rate**more)
            paths = sorted([*known, *imagined], reverse=True)
            if self._best(paths, depth + more)[0] > worth:
                return True
        return False

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""
        draft = self._draft
        depth = len(draft.levels)
        paths = [path for path, _ in draft.nodes]
        _, n_rows = self._best(paths, depth)
        self._foresee(1 + sum(paths[: n_rows - 1]), n_rows, depth)
        self._learn_reach()
        return sorted(node for _, node in draft.nodes[: n_rows - 1])

    def record(self, outcome: Outcome) -> Review | None:
        """Learn what the round cost and which drafted tokens the target chose."""
        draft = self._draft
        if outcome.levels:
            self._take_in(outcome.levels)
        self._learn_costs(outcome)
        for level, token in zip(draft.levels, outcome.tokens, strict=False):
            at = list(level.tokens).index(token) if token in level.tokens else None
            if at == 0 and self.acceptance.children(level.confidences)[0] < self.SURPRISE:
                self._next_wait = self.SHORTEST_WAIT
            self.acceptance.observe(level.confidences, at)
            if at != 0:
                break
        if self.forecast is None:
            self._overall.add(len(outcome.tokens), self.costs.plain(draft.context))
            return None
        self.n_drafted += 1
        seconds = self.forecast.draft_seconds + self.forecast.verify_seconds
        self._overall.add(len(outcome.tokens), seconds)
        if draft.looks:
            self._looking.add(self.forecast.tokens, seconds, 0.3 if self._is_trying else 0.0)
            self._switch()
        return Review(self.forecast, draft.levels[0].tokens[0] == outcome.tokens[0])

    # What is expected

    @property
    def price(self) -> float:
        """Tokens that a second is worth: the rate of late, at least that of plain decoding."""
        return max(self._overall.rate, 1 / self.costs.plain(self._draft.context))

    def is_hopeless(self, context: int) -> bool:
        """Say whether no tree could pay here, however good the head."""
        return self.costs.best_chain(CERTAIN, context, self.max_depth)[0] < PROMISING

    def why_hopeless(self, context: int) -> str:
        """Say why no tree could pay."""
        best, n_rows = self.costs.best_chain(CERTAIN, context, self.max_depth)
        plain = self.costs.plain(context)
        verifying = self.costs.verify(n_rows, context) / plain
        return (
            f"verifying {n_rows} tokens takes {verifying:.2f} times as long as decoding one here, "
            f"drafting them {self.costs.draft(n_rows - 1) / plain:.2f}: even a perfect head would "
            f"give only {best:.2f} times plain decoding"
        )

    def why_plain(self, context: int) -> str:
        """Say what made this planner decode plainly of late."""
        plain = self.costs.plain(context)
        return (
            f"drafting would give {self._looking.tokens.value:.2f} tokens in the time of "
            f"{self._looking.seconds.value / plain:.2f} plain ones"
        )

    @property
    def _next_first_rate(self) -> float:
        return self._next_first.value if self._next_first.n else self.acceptance.first[0.6]

    def _best(self, paths: Sequence[float], depth: int) -> tuple[float, int]:
        """Return the worth in tokens, and the rows, of the best tree of `depth` drafted levels.

        Args:
            paths: acceptance of every drafted node, the likeliest first.
            depth: drafted levels, all paid for.
        """
        context, price = self._draft.context, self.price
        drafting = self.costs.draft(depth)
        best, tokens, taken = (-1e9, 1), 1.0, 0
        for n_rows in self.costs.rows:
            if n_rows > len(paths) + 1:
                break
            tokens += sum(paths[taken : n_rows - 1])
            taken = n_rows - 1
            worth = tokens - price * (drafting + self.costs.verify(n_rows, context))
            if worth > best[0]:
                best = (worth, n_rows)
        return best

    def _best_blind(self, context: int) -> tuple[float, int]:
        """Return the rate of the best chain that is drafted blindly, and its depth."""
        best, tokens = (0.0, 0), 1.0
        for depth, reach in enumerate(self._reach, start=1):
            if reach.n == 0:
                break
            tokens += reach.value
            if depth + 1 in self.costs.rows:
                seconds = self.costs.draft(depth) - depth * self.costs.sync
                seconds += self.costs.verify(depth + 1, context)
                best = max(best, (tokens / seconds, depth))
        return best

    def _foresee(self, tokens: float, n_rows: int, depth: int) -> None:
        context = self._draft.context
        drafting, verifying = self.costs.draft(depth), self.costs.verify(n_rows, context)
        self.forecast = Forecast(tokens, drafting, verifying, n_rows, depth)

    # What is learnt

    def _learn_costs(self, outcome: Outcome) -> None:
        """Compare what the round took with what was expected."""
        costs, forecast = self.costs, self.forecast
        if outcome.verify_seconds is None:
            return
        if forecast is None:
            costs.observe("plain", costs.plain(self._draft.context), outcome.verify_seconds)
        elif outcome.draft_seconds is None:
            unseen = forecast.depth * costs.sync
            expected = forecast.draft_seconds - unseen + forecast.verify_seconds
            costs.observe(forecast.n_rows, expected, outcome.verify_seconds)
        else:
            costs.observe(forecast.n_rows, forecast.verify_seconds, outcome.verify_seconds)
            if forecast.depth:
                costs.observe("draft", forecast.draft_seconds, outcome.draft_seconds)

    def _take_in(self, levels: Sequence[Level]) -> None:
        """Take in a chain whose confidences were read back only after it was verified."""
        for level in levels:
            self._draft.add(level, self.acceptance.children(level.confidences))
        paths = [path for path, _ in self._draft.nodes]
        self._foresee(1 + sum(paths), len(levels) + 1, len(levels))

    def _learn_reach(self) -> None:
        """Note how far the spine reached; below what was drafted, how far it would have."""
        draft = self._draft
        for depth, mean in enumerate(self._reach):
            beyond = max(0, depth + 1 - len(draft.reach))
            known = draft.reach[min(depth, len(draft.reach) - 1)]
            mean.add(known * self._next_first_rate**beyond)

    def _switch(self) -> None:
        """Decide between looking, drafting blindly and, for a while, nothing."""
        context = self._draft.context
        plain = 1 / self.costs.plain(context)
        blind = self._best_blind(context)[0]
        pays = max(self._looking.rate, blind) >= plain
        if pays and self._is_trying:
            self._next_wait = max(self.SHORTEST_WAIT, self._next_wait // 4)
        self._is_trying = False
        if not pays and self._looking.tokens.n >= self.PATIENCE:
            self._wait, self._is_trying = self._next_wait, True
            longest = self.costs.draft(1) / self.costs.plain(context) / self.TRYING
            self._next_wait = max(self.SHORTEST_WAIT, min(2 * self._next_wait, int(longest)))
        elif blind > 1.02 * self._looking.rate:
            self._blind_left = self.REFRESH

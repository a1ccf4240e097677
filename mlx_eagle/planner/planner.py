"""Which tree pays, round by round: measured cost times live acceptance, no drafting included.

A round checks the confidences of every level before it drafts the next one, or drafts a chain
without checking; the costs of the machine say which. A head of which nothing is known drafts a few
levels at first, and more with every level that is accepted. Where drafting does not pay, it pauses:
the pause doubles until probing costs at most 0.5 % of decoding time. Where it pays, a few plain
tokens now and then, at the same price, tell whether it does: rounds that draft say nothing of them.
What is looked up in the text, beside a head or instead of one, `lookup_planner.py` adds.
"""

from collections.abc import Sequence, Set
from typing import NamedTuple

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import Level, Outcome, Plan, Review
from mlx_eagle.planner.round_plan import RoundPlan
from mlx_eagle.planner.throughput import Throughput
from mlx_eagle.tree import PLAIN, TreeShape

CHILDREN = 4  # likeliest tokens that are considered at every level of a tree
DEEPEST = 10  # levels that are ever drafted
PROMISING = 1.1  # speed-up that a perfect head must promise, for drafting to be tried at all
CERTAIN = 0.98  # acceptance of every token, if a head were as good as heads can be
TYPICAL = 0.7  # acceptance of every token, as heads are


class Phase(NamedTuple):
    """Drafting, or a pause: its plain rounds that are still to come, and the next one's length."""

    plain_left: int = 0
    next_pause: int = 4  # tokens; no pause is shorter


def next_state(phase: Phase, *, pays: bool, is_promising: bool, longest: int) -> Phase:
    """Return the phase after a round that drafted.

    Every pause is twice as long as the one before, up to `longest` tokens, until drafting pays
    again, or a round is promising: its tokens were a surprise, so that the head may have recovered,
    or came no later than plain ones, so that the probe cost nothing and the next one may be soon.
    """
    shortest = Phase().next_pause
    pause = shortest if is_promising else phase.next_pause
    return Phase() if pays else Phase(pause, max(shortest, min(2 * pause, longest)))


def later(phase: Phase, n_tokens: int = 1) -> Phase:
    """Return the phase some tokens later."""
    return phase._replace(plain_left=max(0, phase.plain_left - n_tokens))


class Planner:
    """Chooses every round's tree and learns from every round; one per pair and way of sampling.

    `n_children` likeliest tokens are considered at every level: 1 where only chains are verified.
    Without `checks` no level is looked at before all are verified.
    """

    CHECK_COST = 0.027  # share of a round that a check may cost
    FIRST_DEPTH = 2  # levels that an unknown head drafts at least
    PATIENCE = 3  # rounds before drafting may be given up
    PROBING = 0.005  # share of decoding time that probes may take, once pauses have doubled
    SURPRISE = 0.3  # acceptance below which a token is a surprise where the target chooses it
    USUAL_RATE = 0.1  # weight of a level in what is usual

    def __init__(
        self,
        costs: LiveCosts,
        acceptance: Acceptance,
        max_depth: int,
        n_children: int = CHILDREN,
        *,
        checks: bool = True,
    ) -> None:
        self.costs, self.acceptance, self.n_children = costs, acceptance, n_children
        self.max_depth = min(max_depth, costs.rows[-1] - 1, DEEPEST)
        self.checks = checks
        self._depth = self.max_depth if acceptance.is_known else self._first_depth()
        self.phase = Phase()
        self._usual = acceptance.first[0.6]  # acceptance of a likeliest token
        self.recent = Throughput()  # of rounds that drafted
        self._since_plain = 0  # tokens since the last one that was decoded plainly
        self.round = self._begin(0, 0)

    @property
    def n_drafted(self) -> int:
        """Rounds that drafted."""
        return self.recent.n_rounds

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""
        if self.phase.plain_left:
            self.phase, self._since_plain = later(self.phase), 0
            self.round = self._begin(context, 0)
            return Plan(PLAIN, planned=self.round)
        usual = self.costs.best_chain(TYPICAL, context, self._depth)[1] - 1
        if self.checks and self._may_check(usual, context):
            interval = self.costs.check_interval(usual)
            self.round = self._begin(context, self._depth, check_interval=interval)
            shape = TreeShape.chain(self._depth)
            return Plan(shape, self.round, interval, self.n_children, planned=self.round)
        _, n_rows = self.costs.best_chain(self._usual, context, self._depth)
        self.round = self._begin(context, n_rows - 1)
        return Plan(TreeShape.chain(n_rows - 1), planned=self.round)

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""
        return self.phase.plain_left > 0

    def record(self, outcome: Outcome) -> Review | None:
        """Learn what the round cost and which drafted tokens the target chose."""
        # Rounds of several conversations may be under way, and one planned before one is read.
        planned = outcome.planned if isinstance(outcome.planned, RoundPlan) else self.round
        if outcome.levels:
            planned.take_in(outcome.levels)
        self._learn_costs(planned, outcome)
        surprises = self._learn_acceptance(planned, outcome.tokens)
        if planned.forecast is None:
            return None
        self.recent.learn(planned.forecast, len(outcome.tokens))
        if len(outcome.tokens) > 1:
            self._depth = min(self._depth + len(outcome.tokens), self.max_depth)
        self._learn_whether_it_pays(planned, outcome.tokens, surprises)
        self._since_plain += len(outcome.tokens)
        if not self.stays_plain() and self._should_time_plain(planned.context):
            self._time_plain()
        if not planned.levels:
            return None  # nothing was found, and no head drafted
        first = planned.levels[-planned.n_drafted]  # the head's, or of what was looked up
        return Review(planned.forecast, first.tokens[0] == outcome.tokens[0], first.source)

    def is_hopeless(self, context: int) -> bool:
        """Say whether no tree could pay here, however good the head."""
        return self._best_certain(context)[0] < PROMISING

    def why_hopeless(self, context: int) -> str:
        """Say why no tree could pay."""
        best, n_rows = self._best_certain(context)
        plain = self.costs.plain(context)
        verifying = self.costs.verify(n_rows, context) / plain
        drafting = self.costs.draft(n_rows - 1, is_checked=False) / plain
        return (
            f"verifying {n_rows} tokens takes {verifying:.2f} times as long as decoding one here, "
            f"drafting them {drafting:.2f}: even a perfect head would give only {best:.2f} times "
            "plain decoding (mlx-eagle calibrate measures again)"
        )

    def _best_certain(self, context: int) -> tuple[float, int]:
        """Return speed-up and rows of the best chain of tokens that are nearly certain."""
        return self.costs.best_chain(CERTAIN, context, self.max_depth)

    def why_plain(self, context: int) -> str:
        """Say what made this planner decode plainly of late."""
        tokens, _, seconds = self.recent.means
        plain = seconds / self.costs.plain(context)
        return f"drafting would give {tokens:.2f} tokens in the time of {plain:.2f} plain ones"

    def _learn_whether_it_pays(
        self, planned: RoundPlan, tokens: Sequence[int], surprises: Set[str]
    ) -> None:
        """Decide, after a round that drafted and gave `tokens`, whether drafting pauses."""
        plain = self.costs.plain(planned.context)
        assert planned.forecast is not None, "the round was planned to draft"
        cost_nothing = planned.forecast.seconds <= len(tokens) * plain
        # A probe drafts a level, and neither it nor the plain round after it is submitted ahead.
        probe = self.costs.draft(1) + 2 * (self.costs.verify(1, planned.context) - plain)
        self.phase = next_state(
            self.phase,
            pays=self.recent.rate * plain >= 1 or self.n_drafted < self.PATIENCE,
            is_promising=bool(surprises) or cost_nothing,
            longest=int(probe / plain / self.PROBING),
        )
        if self.phase.plain_left:
            self.recent.pause()

    def _should_time_plain(self, context: int) -> bool:
        """Say whether seeing now what plain tokens cost is within what probes may take."""
        plain = self.costs.plain(context)
        lost = Phase().next_pause * max(0.0, self.recent.rate * plain - 1)
        # The round before the pause and its first one are not submitted ahead.
        lost += 2 * (self.costs.verify(1, context) / plain - 1)
        return lost < self.PROBING * self._since_plain

    def _time_plain(self) -> None:
        """Decode a few tokens plainly, though drafting pays."""
        self.phase = self.phase._replace(plain_left=Phase().next_pause)

    def _begin(self, context: int, depth: int, *, check_interval: int = 0) -> RoundPlan:
        """Return a new round, `depth` levels deep at most, unchecked if the interval is 0."""
        tokens, _, seconds = self.recent.means
        price = max(1 / self.costs.plain(context), tokens / seconds if seconds else 0.0)
        known = self.costs, self.acceptance, self._usual, price, context
        return RoundPlan(*known, depth, check_interval > 0, max(1, check_interval))

    def _first_depth(self) -> int:
        """Return the levels that an unknown head drafts: the fewest that pay with a usual one."""
        deep = range(self.FIRST_DEPTH, self.max_depth)
        pays = (d for d in deep if self.costs.best_chain(TYPICAL, 0, d)[0] >= PROMISING)
        return next(pays, self.max_depth)

    def _may_check(self, depth: int, context: int) -> bool:
        """Say whether checks cost less than they give: early stops, trees rather than chains."""
        seconds = self.costs.draft(depth, is_checked=False) + self.costs.verify(depth + 1, context)
        return self.costs.checks(depth) < self.CHECK_COST * depth * seconds

    def _learn_costs(self, planned: RoundPlan, outcome: Outcome) -> None:
        """Compare what the round took with what was expected."""
        costs, forecast, seconds = self.costs, planned.forecast, outcome.verify_seconds
        if seconds is None:
            return
        if forecast is None:
            costs.observe("plain", costs.plain(planned.context), seconds)
        elif outcome.draft_seconds is None:
            costs.observe(forecast.n_rows, forecast.seconds, seconds)
        else:
            costs.observe(forecast.n_rows, forecast.verify_seconds, seconds)
            if planned.n_drafted:
                costs.observe("draft", forecast.draft_seconds, outcome.draft_seconds)

    def _learn_acceptance(self, planned: RoundPlan, tokens: Sequence[int]) -> set[str]:
        """Count the drafted tokens below accepted ones; return of what source a hit surprises."""
        for level, rates in zip(planned.levels, planned.rates, strict=True):
            if not level.is_lookup:
                self._usual += self.USUAL_RATE * (rates[0] - self._usual)
        surprises = set[str]()
        for at, right in planned.hits(tokens):
            level, rates = planned.levels[at], planned.rates[at]
            self._model(level).observe(level.confidences, right)
            if right == 0 and rates[0] < self.SURPRISE:
                surprises.add(level.source)
        return surprises

    def _model(self, level: Level) -> Acceptance:
        """Return which acceptance model a level belongs to."""
        return self.acceptance

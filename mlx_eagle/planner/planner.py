"""Which tree pays, round by round: measured cost times live acceptance, no drafting included.

A round either checks the confidences of every level before it drafts the next one, or drafts a
chain without checking; the costs of the machine say which. `round_plan.py` says what is best within
a round. Where drafting does not pay, it pauses (`phase.py`): the pause doubles until probing costs
at most 0.5 % of decoding time.

Pure arithmetic on floats: no arrays, no model. The simulator runs this very code.
"""

from collections.abc import Sequence

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.phase import Phase, next_state
from mlx_eagle.planner.policy import Outcome, Plan, Review
from mlx_eagle.planner.round_plan import Outlook, RoundPlan
from mlx_eagle.tree import PLAIN, TreeShape

CHILDREN = 4  # likeliest tokens that are considered at every level of a tree
DEEPEST = 10  # levels that are ever drafted
PROMISING = 1.1  # speed-up that a perfect head must promise, for drafting to be tried at all
CERTAIN = 0.98  # acceptance of every token, if a head were as good as heads can be
TYPICAL = 0.7  # acceptance of every token, as heads are


class Mean:
    """An exponential mean that is a plain mean at first; it may start as if of `n` values."""

    def __init__(self, rate: float, value: float = 0.0, n: int = 0) -> None:
        self.rate, self.value, self.n = rate, value, n

    def add(self, value: float) -> None:
        """Take in a value."""
        self.n += 1
        self.value += max(self.rate, 1 / self.n) * (value - self.value)


class Planner:
    """Chooses every round's tree and learns from every round; one per pair and way of sampling.

    Args:
        costs: what rounds cost; followed from here on.
        acceptance: what is known of the head; followed from here on.
        max_depth: the deepest tree that the drafter can make.
        n_children: likeliest tokens that are considered at every level; 1 where the target
            verifies chains only.
    """

    CHECK_COST = 0.027  # share of a round that a check may cost
    AFTER = 4
    TR = 12
    PATIENCE = 4  # rounds before drafting may be given up
    PROBING = 0.005  # share of decoding time that probes may take, once pauses have doubled
    SURPRISE = 0.3  # acceptance below which a token is a surprise where the target chooses it
    SHORT = 0.9  # share of the expected tokens that may come before it counts

    def __init__(
        self,
        costs: LiveCosts,
        acceptance: Acceptance,
        max_depth: int,
        n_children: int = CHILDREN,
    ) -> None:
        self.costs, self.acceptance, self.n_children = costs, acceptance, n_children
        self.max_depth = min(max_depth, costs.rows[-1] - 1, DEEPEST)
        self.n_drafted = 0  # rounds
        self.phase = Phase()
        # A guess that a single level could replace might forbid to draft any other for ever.
        self._usual = Mean(0.05, acceptance.first[0.6], n=8)
        # Of rounds that drafted: tokens and seconds as expected, and the tokens that came.
        self._expected, self._seconds, self._came = Mean(0.1), Mean(0.1), Mean(0.06)
        self.round = self._begin(0, 0)

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""
        if self.phase.plain_left:
            self.phase = self.phase._replace(plain_left=self.phase.plain_left - 1)
            self.round = self._begin(context, 0)
            return Plan(PLAIN)
        if self._may_check(context):
            self.round = self._begin(context, self.max_depth, is_checked=True)
            return Plan(TreeShape.chain(self.max_depth), self.round, 1, self.n_children)
        _, n_rows = self.costs.best_chain(self._usual.value, context, self.max_depth)
        self.round = self._begin(context, n_rows - 1)
        return Plan(TreeShape.chain(n_rows - 1))

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""
        return self.phase.plain_left > 0

    def record(self, outcome: Outcome) -> Review | None:
        """Learn what the round cost and which drafted tokens the target chose."""
        planned, costs = self.round, self.costs
        if outcome.levels:
            planned.take_in(outcome.levels)
        self._learn_costs(outcome)
        is_surprise = self._learn_acceptance(outcome.tokens)
        if planned.forecast is None:
            return None
        self.n_drafted += 1
        self._expected.add(planned.forecast.tokens)
        self._seconds.add(planned.forecast.draft_seconds + planned.forecast.verify_seconds)
        self._came.add(len(outcome.tokens))
        plain = costs.plain(planned.context)
        # A probe drafts a level, and neither it nor the plain round after it is submitted ahead.
        probe = costs.draft(1) + 2 * (costs.verify(1, planned.context) - plain)
        self.phase = next_state(
            self.phase,
            pays=self._throughput() * plain >= 1 or self.n_drafted < self.PATIENCE,
            is_surprise=is_surprise,
            longest=int(probe / plain / self.PROBING),
        )
        if self.phase.plain_left:
            for mean in (self._expected, self._seconds, self._came):
                mean.n = self.AFTER
        return Review(planned.forecast, planned.levels[0].tokens[0] == outcome.tokens[0])

    def is_hopeless(self, context: int) -> bool:
        """Say whether no tree could pay here, however good the head."""
        return self.costs.best_chain(CERTAIN, context, self.max_depth)[0] < PROMISING

    def why_hopeless(self, context: int) -> str:
        """Say why no tree could pay."""
        best, n_rows = self.costs.best_chain(CERTAIN, context, self.max_depth)
        plain = self.costs.plain(context)
        verifying = self.costs.verify(n_rows, context) / plain
        drafting = self.costs.draft(n_rows - 1, is_checked=False) / plain
        return (
            f"verifying {n_rows} tokens takes {verifying:.2f} times as long as decoding one here, "
            f"drafting them {drafting:.2f}: even a perfect head would give only {best:.2f} times "
            "plain decoding (mlx-eagle calibrate measures again)"
        )

    def why_plain(self, context: int) -> str:
        """Say what made this planner decode plainly of late."""
        plain_ones = self._seconds.value / self.costs.plain(context)
        return (
            f"drafting would give {self._expected.value:.2f} tokens in the time of "
            f"{plain_ones:.2f} plain ones"
        )

    def _begin(self, context: int, depth: int, *, is_checked: bool = False) -> RoundPlan:
        """Return a new round, `depth` levels deep at most."""
        price = 1 / self.costs.plain(context)
        if self._seconds.n:
            price = max(price, self._expected.value / self._seconds.value)
        outlook = Outlook(self.costs, self.acceptance, self._usual.value, price)
        return RoundPlan(outlook, context, depth, is_checked=is_checked)

    def _may_check(self, context: int) -> bool:
        """Say whether checks cost less than they give: early stops, and trees rather than chains.

        They give CHECK_COST of a round per level of a typical chain, over the simulator's curves.
        """
        depth = self.costs.best_chain(TYPICAL, context, self.max_depth)[1] - 1
        seconds = self.costs.draft(depth, is_checked=False) + self.costs.verify(depth + 1, context)
        return self.costs.checks(depth) < self.CHECK_COST * depth * seconds

    def _throughput(self) -> float:
        """Return tokens per second of drafting, less than expected where clearly fewer have come."""
        trusted = self.n_drafted >= self.TR
        most = self._came.value / self.SHORT if trusted else float("inf")
        return min(self._expected.value, most) / self._seconds.value

    def _learn_costs(self, outcome: Outcome) -> None:
        """Compare what the round took with what was expected."""
        costs, forecast = self.costs, self.round.forecast
        if outcome.verify_seconds is None:
            return
        if forecast is None:
            costs.observe("plain", costs.plain(self.round.context), outcome.verify_seconds)
        elif outcome.draft_seconds is None:
            expected = forecast.draft_seconds + forecast.verify_seconds
            costs.observe(forecast.n_rows, expected, outcome.verify_seconds)
        else:
            costs.observe(forecast.n_rows, forecast.verify_seconds, outcome.verify_seconds)
            costs.observe("draft", forecast.draft_seconds, outcome.draft_seconds)

    def _learn_acceptance(self, tokens: Sequence[int]) -> bool:
        """Compare the drafted levels with what the target chose, down to the first miss.

        Returns:
            Whether the target chose a likeliest token of which that was not expected.
        """
        for rates in self.round.rates:
            self._usual.add(rates[0])
        is_surprise = False
        for level, rates, token in zip(self.round.levels, self.round.rates, tokens, strict=False):
            at = list(level.tokens).index(token) if token in level.tokens else None
            self.acceptance.observe(level.confidences, at)
            if at != 0:
                break
            is_surprise = is_surprise or rates[0] < self.SURPRISE
        return is_surprise

"""Which tree pays, round by round: measured cost times live acceptance, no drafting included.

A round is worth its expected tokens less its seconds at the going rate: in the time of a long
round a shorter one would be over and the next one begun. With the rate that is reached in the long
run as the price, the best of every round is the best of all (a fractional programme; W. Dinkelbach,
Management Science 13, 1967). Expected tokens are sums of path probabilities, so the best N nodes
are the N most probable ones (OPT-Tree, TACL 2025; CaDDTree, arXiv 2606.01813), for every N that
was measured: a curve of costs may have steps.

Drafting follows the likeliest token and keeps its likeliest siblings as leaves. It stops where one
to three more levels would not pay; `prospects.py` says how often it is worth to look. Where
drafting itself does not pay, it stops for a while that doubles as long as nothing changes.

Pure arithmetic on floats: no arrays, no model. The simulator runs this very code.
"""

from collections.abc import Sequence

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.policy import Forecast, Level, Node, Outcome, Plan, Review
from mlx_eagle.planner.strategies import Draft, Mean, Pace, Prospects, Tree, Way, best_tree
from mlx_eagle.tree import PLAIN, TreeShape

CHILDREN = 4  # likeliest tokens that are considered at every level of a tree
DEEPEST = 10  # levels that are ever drafted
LOOKAHEAD = 3  # levels that are imagined before drafting stops
PROMISING = 1.1  # speed-up that a perfect head must promise, for drafting to be tried at all
CERTAIN = 0.98  # acceptance of every token, if a head were as good as heads can be


class Planner:
    """Chooses every round's tree and learns from every round; one per pair and way of sampling.

    Args:
        costs: what rounds cost; followed from here on.
        acceptance: what is known of the head; followed from here on.
        max_depth: the deepest tree that the drafter can make.
        n_children: likeliest tokens that are considered at every level; 1 where the target
            verifies chains only.
    """

    PATIENCE = 4  # rounds before drafting may be given up
    SHORTEST_WAIT = 4  # tokens of plain decoding between two tries
    TRYING = 0.005  # share of the time that tries may take, once waits have doubled
    TRY_WEIGHT = 0.3  # of a single try, in the pace of looking
    SURPRISE = 0.3  # acceptance that was expected of a token that is worth another try soon
    SPELL = 8  # rounds of another way between two rounds of looking at every level
    SPELL_RATE = 0.2  # weight of a round in the pace of a spell
    MARGIN = 1.04  # by which another way must be better
    SHORT = 0.93  # share of the expected tokens that may come before it counts

    def __init__(
        self,
        costs: LiveCosts,
        acceptance: Acceptance,
        max_depth: int,
        n_children: int = CHILDREN,
    ) -> None:
        self.costs, self.acceptance, self.n_children = costs, acceptance, n_children
        self.max_depth = min(max_depth, costs.rows[-1] - 1, DEEPEST)
        self.forecast: Forecast | None = None
        self.n_drafted = 0  # rounds
        self._prospects = Prospects(costs, self.max_depth, n_children, acceptance.first[0.6])
        self._overall = Pace(0.005)
        self._expected, self._came = Mean(0.06), Mean(0.06)  # tokens of rounds that drafted
        self._draft = Draft(0)
        self._looking = Way(self.max_depth, 1)
        self._way = self._looking
        self._wait, self._next_wait = 0, self.SHORTEST_WAIT
        self._is_trying = False  # the round after a wait
        self._spell = 0  # rounds left of a way that is not looking at every level
        self._spelling = Pace(self.SPELL_RATE)

    # What to do

    def plan(self, context: int) -> Plan:
        """Say what the next round drafts, with `context` tokens in the cache."""
        self._draft = Draft(context)
        self.forecast = None
        if self._wait:
            self._wait -= 1
            return Plan(PLAIN)
        self._way = self._looking
        if self._spell:
            self._spell -= 1
            self._way = self._prospects.best(context)[1]
        shape = TreeShape.chain(self._way.depth)
        if not self._way.check_interval:
            return Plan(shape)
        return Plan(shape, self, self._way.check_interval, self.n_children)

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too, whatever this one gives."""
        return self._wait > 0

    def deeper(self, level: Level) -> bool:
        """Take in the newest drafted level; say whether another one should be drafted."""
        self._take_in(level)
        draft = self._draft
        depth = len(draft.levels)
        if depth >= self._way.depth or self._way.check_interval != 1:
            return depth < self._way.depth
        paths = draft.paths(depth)
        worth = self._best(paths, depth).worth
        n_more = min(LOOKAHEAD, self._way.depth - depth)
        for more, imagined in enumerate(self._prospects.beyond(draft, n_more), start=1):
            paths = sorted([*paths, *imagined], reverse=True)
            if self._best(paths, depth + more).worth > worth:
                return True
        return False

    def choose(self) -> list[Node]:
        """Return the nodes to verify, parents first; empty for the root alone."""
        depth = len(self._draft.levels)
        tree = self._best(self._draft.paths(depth), depth)
        self._foresee(tree.tokens, tree.n_rows)
        return sorted(node for _, node in self._draft.nodes[: tree.n_rows - 1])

    def record(self, outcome: Outcome) -> Review | None:
        """Learn what the round cost and which drafted tokens the target chose."""
        draft = self._draft
        if outcome.levels:
            for level in outcome.levels:
                self._take_in(level)
            self._foresee(1 + sum(draft.reach), len(outcome.levels) + 1)
        self._learn_costs(outcome)
        self._learn_acceptance(outcome.tokens)
        if self.forecast is None:
            self._overall.add(len(outcome.tokens), self.costs.plain(draft.context))
            return None
        self._learn_paces(self.forecast, len(outcome.tokens))
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
            f"give only {best:.2f} times plain decoding (mlx-eagle calibrate measures again)"
        )

    def why_plain(self, context: int) -> str:
        """Say what made this planner decode plainly of late."""
        pace, plain = self._prospects.looking, self.costs.plain(context)
        return (
            f"drafting would give {pace.tokens.value:.2f} tokens in the time of "
            f"{pace.seconds.value / plain:.2f} plain ones"
        )

    def _take_in(self, level: Level) -> None:
        """Add a level to what has been drafted."""
        self._prospects.see(self._draft.add(level, self.acceptance))

    def _best(self, paths: Sequence[float], depth: int) -> Tree:
        """Return the best tree of `depth` drafted levels with these path acceptances."""
        drafting = self._way.seconds(self.costs, depth)
        context = self._draft.context
        return best_tree(paths, context, self.costs, price=self.price, drafting=drafting)

    def _foresee(self, tokens: float, n_rows: int) -> None:
        """Note what the round is expected to give, now that its tree is chosen."""
        depth, costs = len(self._draft.levels), self.costs
        verifying = costs.verify(n_rows, self._draft.context)
        drafting = self._way.seconds(costs, depth)
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
            expected = forecast.draft_seconds + forecast.verify_seconds
            costs.observe(forecast.n_rows, expected, outcome.verify_seconds)
        else:
            costs.observe(forecast.n_rows, forecast.verify_seconds, outcome.verify_seconds)
            costs.observe("draft", forecast.draft_seconds, outcome.draft_seconds)

    def _learn_acceptance(self, tokens: Sequence[int]) -> None:
        """Compare the drafted levels with what the target chose, down to the first miss."""
        for level, token in zip(self._draft.levels, tokens, strict=False):
            at = list(level.tokens).index(token) if token in level.tokens else None
            if at == 0 and self.acceptance.children(level.confidences)[0] < self.SURPRISE:
                self._next_wait = self.SHORTEST_WAIT
            self.acceptance.observe(level.confidences, at)
            if at != 0:
                break

    def _learn_paces(self, forecast: Forecast, n_tokens: int) -> None:
        """Compare what the round gave with what was expected, and with the other ways."""
        self.n_drafted += 1
        seconds = forecast.draft_seconds + forecast.verify_seconds
        self._overall.add(n_tokens, seconds)
        weight = self.TRY_WEIGHT if self._is_trying else 0.0
        self._expected.add(forecast.tokens, weight)
        self._came.add(n_tokens, weight)
        if self._way == self._looking:
            # All ways are compared on the same rounds, or easy ones would flatter those in use.
            self._prospects.looking.add(forecast.tokens, seconds, weight)
            self._prospects.learn(self._draft, self.price, weight)
        else:
            self._spelling.add(forecast.tokens, seconds)

    @property
    def _trust(self) -> float:
        """Share of the expected tokens that comes in fact, where it clearly falls short."""
        if self._came.n < 3 * self.PATIENCE:
            return 1.0
        return min(1.0, self._came.value / (self.SHORT * self._expected.value))

    def _switch(self) -> None:
        """Decide between looking at every level, another way and, for a while, nothing."""
        plain = self.costs.plain(self._draft.context)
        rate, way = self._prospects.best(self._draft.context)
        if self._spell and self._spelling.seconds.n >= self.PATIENCE:
            rate = self._spelling.rate
        was_trying, self._is_trying = self._is_trying, False
        if rate * plain * self._trust < 1.0 and self.n_drafted >= self.PATIENCE:
            self._pause(plain)
            return
        if was_trying:
            self._next_wait = max(self.SHORTEST_WAIT, self._next_wait // 4)
        may_change = self._spell == 0 and self._way == self._looking and way != self._looking
        if may_change and rate > self.MARGIN * self._prospects.looking.rate:
            self._spell, self._spelling = self.SPELL, Pace(self.SPELL_RATE)

    def _pause(self, plain: float) -> None:
        """Draft nothing for a while, the next time for longer; `plain`: seconds per token."""
        self._wait, self._is_trying, self._spell = self._next_wait, True, 0
        longest = self.costs.draft(1) / plain / self.TRYING
        self._next_wait = max(self.SHORTEST_WAIT, min(2 * self._next_wait, int(longest)))

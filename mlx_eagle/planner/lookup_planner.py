"""The planner where tokens are looked up in the text, beside a head or instead of one.

Looking up costs next to nothing, so every round that is not plain begins with it. What is found has
an acceptance model of its own, and how much is looked up follows what was right of late. A head
drafts beside it where that pays on top, and rests where it promises nothing: then it is probed more
and more seldom, until that costs at most 0.5 % of decoding time. Rounds in which a head drafted and
others are judged apart, so that neither source is given up for what the other one costs.
"""

from collections.abc import Sequence, Set

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import LiveCosts
from mlx_eagle.planner.planner import CERTAIN, CHILDREN, TYPICAL, Phase, Planner, later, next_state
from mlx_eagle.planner.policy import HEAD, NGRAM, Forecast, Level, Plan
from mlx_eagle.planner.round_plan import RoundPlan
from mlx_eagle.planner.throughput import Throughput
from mlx_eagle.tree import MAX_NODES, TreeShape


class LookupPlanner(Planner):
    """Chooses every round's tree; `lookup` is the acceptance of what is looked up.

    `max_depth` is 0 where there is no head.
    """

    FIRST_LOOKUP = 4  # tokens that are looked up at first, and after nothing of them was right

    def __init__(
        self,
        costs: LiveCosts,
        acceptance: Acceptance,
        lookup: Acceptance,
        max_depth: int,
        n_children: int = CHILDREN,
    ) -> None:
        self.lookup, self.n_lookup = lookup, self.FIRST_LOOKUP
        self.head_phase = Phase()
        self.recent_head, self.recent_lookup = Throughput(), Throughput()
        super().__init__(costs, acceptance, max_depth, n_children)

    def plan(self, context: int) -> Plan:
        """Say what the next round looks up and drafts, with `context` tokens in the cache.

        Where checks are too expensive a head may draft a chain instead, which nobody looks at.
        """
        if self.stays_plain():
            self.head_phase = later(self.head_phase)
            return super().plan(context)
        depth, interval = 0 if self.head_phase.plain_left else self._depth, 0
        if depth:
            usual = self.costs.best_chain(TYPICAL, context, depth)[1] - 1
            if self._may_check(usual, context):
                interval = self.costs.check_interval(usual)
            else:
                depth = self.costs.best_chain(self._usual, context, depth)[1] - 1
        self.round = self._begin(context, depth, check_interval=interval)
        self.round.lookup, self.round.one_chain = self.lookup, self.n_children == 1
        n = min(self.n_lookup, self.costs.rows[-1] - 1)
        found = TreeShape(n, self.n_children, n)
        shape = TreeShape.chain(max(1, depth))
        return Plan(shape, self.round, max(1, interval), self.n_children, self.round, found)

    def stays_plain(self) -> bool:
        """Say whether the next round is plain too: whether both sources pause."""
        return self.phase.plain_left > 0 and (self.head_phase.plain_left > 0 or not self.max_depth)

    def _best_certain(self, context: int) -> tuple[float, int]:
        """Return speed-up and rows of the best chain of tokens that are nearly certain."""
        depth = self.max_depth or self.costs.rows[-1] - 1
        return self.costs.best_chain(CERTAIN, context, depth)

    def _learn_whether_it_pays(
        self, planned: RoundPlan, tokens: Sequence[int], surprises: Set[str]
    ) -> None:
        """Decide how much is looked up next, and which of both sources pauses."""
        forecast, plain = planned.forecast, self.costs.plain(planned.context)
        assert forecast is not None, "the round was planned to draft"
        found = [at for at, level in enumerate(planned.levels) if level.is_lookup]
        right = [at for at, child in planned.hits(tokens) if child is not None]
        n_found = sum(at in found for at in right)
        self.n_lookup = min(max(self.FIRST_LOOKUP, 2 * (n_found + 1)), MAX_NODES)
        nothing = Forecast(1.0, 0.0, self.costs.verify(1, planned.context), 1, 0)
        n = len(tokens)
        self.phase, self.head_phase = later(self.phase, n), later(self.head_phase, n)
        idle = 2 * (nothing.verify_seconds - plain)  # a probe and the plain round after it
        if planned.n_drafted:
            pays = self._pays(self.recent_head, forecast, n, plain)
            longest = int((self.costs.draft(1) + idle) / plain / self.PROBING)
            own_tokens = 1 + len(right) - n_found
            is_promising = HEAD in surprises or forecast.seconds <= own_tokens * plain
            self.head_phase = next_state(
                self.head_phase, pays=pays, is_promising=is_promising, longest=longest
            )
        if not (planned.n_drafted and found):
            # Where a head drafted and nothing was found, that was a probe of lookup for nothing.
            own = nothing if planned.n_drafted else forecast
            pays = self._pays(self.recent_lookup, own, n, plain)
            longest = int(idle / plain / self.PROBING)
            if pays or not self.phase.plain_left:  # a pause is longer only after the one before
                self.phase = next_state(
                    self.phase, pays=pays, is_promising=NGRAM in surprises, longest=longest
                )

    def _time_plain(self) -> None:
        """Decode a few tokens plainly, whatever pays."""
        super()._time_plain()
        n = max(self.phase.plain_left, self.head_phase.plain_left)
        self.head_phase = self.head_phase._replace(plain_left=n)

    def _pays(self, recent: Throughput, forecast: Forecast, n_tokens: int, plain: float) -> bool:
        """Take in a round of a source; say whether it is worth going on with."""
        recent.learn(forecast, 1 if forecast.n_rows == 1 else n_tokens)
        pays = recent.rate * plain >= 1 or recent.n_rounds < self.PATIENCE
        if not pays:
            recent.pause()
        return pays

    def _model(self, level: Level) -> Acceptance:
        """Return the acceptance model of the level's source."""
        return self.lookup if level.is_lookup else self.acceptance

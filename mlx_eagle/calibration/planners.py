"""The planners of an engine, and the records that they start from and keep.

Greedy and sampled decoding have a planner each, because fewer drafts are accepted where tokens are
drawn, and live costs each, because drawing them takes time of its own in every round. So has each
rule by which drafts are accepted.
"""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.calibration.measure import Report, measure
from mlx_eagle.calibration.store import Records
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.planner import CHILDREN, Planner
from mlx_eagle.planner.policy import Sources
from mlx_eagle.sampling.options import MATCH, RATIO
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.static_tree import MeasuredTree, StaticTree
from mlx_eagle.target.target import Target

GREEDY, SAMPLED = "greedy", "sampled"
LOOKUP = ", looked up"  # after either: of tokens that were looked up


class Calibration(NamedTuple):
    """Costs, and where they come from in words; `is_awaited` if they will be measured soon."""

    costs: Costs
    source: str
    is_measured: bool
    is_awaited: bool = False


UNMEASURED = Calibration(
    Costs.published(), "published for an M4 Pro, not measured here", is_measured=False
)
AWAITED = UNMEASURED._replace(is_awaited=True)


def find_costs(
    target: Target,
    drafter: Drafter,
    records: Records | None,
    report: Report | None = None,
    *,
    may_measure: bool = True,
) -> Calibration:
    """Return the costs of this machine: those on record, or measured now, or published ones.

    Args:
        target: the target that verifies.
        drafter: a new drafter for it.
        records: of the pair on this machine; None: nothing is kept.
        report: called with (steps done, steps in all) if it is measured.
        may_measure: False takes published costs where none are on record.
    """
    known = records.costs() if records else None
    if known is not None:
        costs, day = known
        return Calibration(costs, f"measured on {day}", is_measured=True)
    return measure_costs(target, drafter, records, report) if may_measure else UNMEASURED


def measure_costs(
    target: Target, drafter: Drafter, records: Records | None, report: Report | None = None
) -> Calibration:
    """Measure the costs of this machine and put them on record; see `find_costs`.

    Raises:
        ClusterError: if another machine of the target is lost meanwhile.
    """
    try:
        costs, source = measure(target, drafter, report), "measured now"
    except ClusterError:
        raise
    except EagleError as error:
        return UNMEASURED._replace(source=f"{UNMEASURED.source}: measuring failed, {error}")
    try:
        if records is not None:
            records.save_costs(costs)
    except EagleError as error:
        source = f"measured now, and lost with this run: {error}"
    return Calibration(costs, source, is_measured=True)


class Planners:
    """One planner per way of choosing tokens.

    Args:
        calibration: what rounds cost.
        max_depth: the deepest tree that the drafter can make.
        records: where acceptance is kept between runs; None: nowhere.
        watch: notices a head that is of no use; None: nobody does.
        chains_only: whether the target verifies chains only.
        sources: where drafted tokens come from.

    Attributes:
        ranks: by depth, how often the head's token of each rank is right; None if that was not
            measured.
    """

    WORTH_KEEPING = 32  # rounds

    def __init__(
        self,
        calibration: Calibration = UNMEASURED,
        max_depth: int = 255,
        records: Records | None = None,
        watch: HeadWatch | None = None,
        *,
        chains_only: bool = False,
        sources: Sources = Sources(),  # noqa: B008 (it cannot be changed)
    ) -> None:
        self.calibration, self.sources = calibration, sources
        self.max_depth, self.records, self.watch = max_depth, records, watch
        self.chains_only = chains_only
        self.ranks = records.ranks() if records else None
        self._n_children = 1 if chains_only else CHILDREN
        self._planners: dict[str, Planner] = {}
        self._kept_at = 0

    def planner(self, temperature: float, rule: str = MATCH) -> Planner:
        """Return the planner for a temperature, 0 being greedy, and a rule of acceptance."""
        kind = (SAMPLED if rule == MATCH else rule) if temperature else GREEDY
        if kind not in self._planners:
            self._planners[kind] = self._make(kind)
        return self._planners[kind]

    def _make(self, kind: str) -> Planner:
        """Return a new planner for a way of choosing tokens."""
        measured, known, n = self.calibration, self._acceptance(kind), self._n_children
        costs, depth = measured.costs, self.max_depth
        if not self.sources.head:
            costs, depth = costs.without_drafting(), 0
        live = LiveCosts(costs, is_measured=measured.is_measured)
        if self.sources.lookup:
            assert kind != RATIO, "drafts that are looked up are not drawn: a request is refused"
            return LookupPlanner(live, known, self._acceptance(kind + LOOKUP), depth, n)
        if kind == RATIO:  # a draft that is drawn must not be looked at before it is verified
            return Planner(live, known, depth, n_children=1, checks=False)
        return Planner(live, known, depth, n)

    def _acceptance(self, kind: str) -> Acceptance:
        """Return what is on record of a kind, if only a prior."""
        return self.records.acceptance(kind) if self.records else Acceptance()

    def measured_tree(self, tree: MeasuredTree) -> StaticTree:
        """Return the likeliest tree of so many nodes.

        Raises:
            EagleError: if nothing was measured to build it from.
        """
        if self.ranks is None:
            raise EagleError(
                f"the tree {tree.text} is built from how often each rank of Medusa heads is right, "
                "which was not measured for this pair yet: run mlx-eagle calibrate, or give a "
                "published tree (mc_sim_7b_63)"
            )
        return StaticTree(StaticTree.likeliest(self.ranks, tree.nodes).paths, tree.text)

    def outlook(self, context: int) -> Speculation:
        """Say whether any tree could pay with `context` cached tokens, were the head perfect."""
        if self.calibration.is_awaited and mx.default_device() == mx.cpu:
            return Speculation.off("this machine has not been measured yet, and soon will be")
        planner = self.planner(0.0)
        if planner.is_hopeless(context):
            return Speculation.off(planner.why_hopeless(context))
        return ON

    def keep(self) -> None:
        """Record what was learnt of the head, once it is worth it and as long as that works."""
        n_rounds = sum(planner.n_drafted for planner in self._planners.values())
        if self.records is None or n_rounds < self._kept_at + self.WORTH_KEEPING:
            return
        self._kept_at = n_rounds
        learnt = {kind: planner.acceptance for kind, planner in self._planners.items()}
        for kind, planner in self._planners.items():
            if isinstance(planner, LookupPlanner):
                learnt[kind + LOOKUP] = planner.lookup
        try:
            self.records.save_acceptance(learnt)
        except EagleError:
            self.records = None

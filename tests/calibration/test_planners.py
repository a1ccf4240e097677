"""Greedy and sampled decoding: a planner each, and what rounds cost each."""

from pathlib import Path

import pytest

from mlx_eagle.calibration.planners import Calibration, Planners
from mlx_eagle.calibration.store import Identity, Records
from mlx_eagle.planner.cost_model import Costs
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.policy import Outcome, Sources

MACHINE = Calibration(
    Costs((0,), {1: (1.0,), 2: (1.1,)}, (1.0,), (0.1,), 0.0), "made up", is_measured=True
)


def test_dear_sampled_rounds_leave_the_costs_of_greedy_ones_as_they_are() -> None:
    """Filters sort all logits of a round, which takes part of its time."""
    planners = Planners(MACHINE)
    greedy, sampled = planners.planner(0.0), planners.planner(0.8)
    for _ in range(50):
        plan = sampled.plan(0)
        sampled.record(Outcome([1], None, 3.0, planned=plan.planned))
    assert sampled.costs.plain(0) > 1.3 * greedy.costs.plain(0)
    assert greedy.costs.plain(0) == 1.0


@pytest.mark.parametrize("temperature", [0.3, 1.5])
def test_all_temperatures_but_zero_share_a_planner(temperature: float) -> None:
    planners = Planners(MACHINE)
    assert planners.planner(temperature) is planners.planner(0.8)
    assert planners.planner(temperature) is not planners.planner(0.0)


def test_what_is_looked_up_is_kept_apart_from_the_head_and_costs_no_drafting(
    tmp_path: Path,
) -> None:
    kept = Records(tmp_path, Identity({}, {"target": "t"}))
    for sources in (Sources(head=False, lookup=True), Sources(head=True, lookup=True)):
        planner = Planners(MACHINE, 8, kept, sources=sources).planner(0.0)
        assert isinstance(planner, LookupPlanner)
        assert (planner.max_depth > 0) is sources.head
        assert (planner.costs.draft(1) > 0.01) is sources.head
    planners = Planners(MACHINE, 8, kept, sources=sources)
    planner = planners.planner(0.0)
    assert isinstance(planner, LookupPlanner)
    for _ in range(50):
        planner.lookup.observe([0.6], chosen=0)
    planner.recent.n_rounds = Planners.WORTH_KEEPING
    planners.keep()
    again = Planners(MACHINE, 8, kept, sources=sources).planner(0.0)
    assert isinstance(again, LookupPlanner)
    assert again.lookup.children([0.6])[0] > 0.9 and not again.acceptance.is_known

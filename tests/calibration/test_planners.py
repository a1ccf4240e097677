"""Greedy and sampled decoding: a planner each, and what rounds cost each."""

import pytest

from mlx_eagle.calibration.planners import Calibration, Planners
from mlx_eagle.planner.cost_model import Costs
from mlx_eagle.planner.policy import Outcome

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

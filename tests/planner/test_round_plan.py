"""One round: what is drafted, what is verified, and what is expected of it."""

from typing import Any

import pytest

from mlx_eagle.planner.acceptance_model import Acceptance, Bins
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.policy import Forecast, Level, Node
from mlx_eagle.planner.round_plan import RoundPlan


class Half(Bins):
    """Everything is accepted half of the time, whatever the confidence."""

    def __getitem__(self, confidence: float) -> float:
        return 0.5


def machine(rows: dict[int, float], sync: float = 0.0, step: float = 0.1) -> LiveCosts:
    """A machine by its curve, in plain tokens; every drafted level costs a step and a wait."""
    draft = tuple(d * (step + sync) for d in range(1, 9))
    return LiveCosts(Costs((0,), {n: (c,) for n, c in rows.items()}, (1.0,), draft, sync))


def plan(costs: LiveCosts, **changes: Any) -> RoundPlan:
    about = {"usual": 0.5, "price": 1.0, "context": 0, "depth": 8, "is_checked": True} | changes
    return RoundPlan(costs, Acceptance(Half(), Half()), **about)


def level(n_children: int = 1) -> Level:
    return Level(list(range(n_children)), [0.5] * n_children)


FREE = dict.fromkeys(range(1, 9), 1.0)


def test_nodes_are_verified_by_path_acceptance_parents_first() -> None:
    made = plan(machine(FREE | {4: 9.0, 5: 9.0, 6: 9.0, 7: 9.0, 8: 9.0}))
    made.deeper(level(2))
    made.deeper(level(2))
    assert made.choose() == [Node(0, 0), Node(0, 1)]
    whole = plan(machine(FREE))
    whole.deeper(level(2))
    whole.deeper(level(2))
    assert whole.choose() == [Node(0, 0), Node(1, 0), Node(0, 1), Node(1, 1)]
    assert whole.rates == [[0.5, 0.5], [0.5, 0.5]]


def test_the_best_tree_weighs_tokens_against_seconds() -> None:
    rows = {1: 1.0, 2: 1.2, 3: 1.9}
    for price, n_nodes in ((1.0, 1), (0.1, 2), (3.0, 0)):
        made = plan(machine(rows), price=price)
        made.deeper(level(2))
        assert len(made.choose()) == n_nodes


def test_only_numbers_of_rows_that_were_measured_are_verified() -> None:
    made = plan(machine({1: 1.0, 3: 1.0, 6: 1.0}))
    made.deeper(level(4))
    assert len(made.choose()) == 2


@pytest.mark.parametrize(("usual", "goes_on"), [(0.9, True), (0.1, False)])
def test_drafting_goes_on_where_a_level_as_levels_usually_are_would_pay(
    usual: float, goes_on: bool
) -> None:
    assert plan(machine(FREE), usual=usual).deeper(level()) is goes_on


def test_drafting_goes_on_towards_a_number_of_rows_that_is_some_levels_away() -> None:
    assert plan(machine({1: 1.0, 8: 1.0}, step=0.01), usual=0.9).deeper(level())
    assert not plan(machine({1: 1.0, 8: 1.0}, step=0.01), usual=0.9, depth=6).deeper(level())


def test_no_level_beyond_the_deepest_is_asked_for() -> None:
    made = plan(machine(FREE), usual=0.99, depth=2)
    assert made.deeper(level())
    assert not made.deeper(level())


def test_the_dearer_the_waits_the_earlier_drafting_stops() -> None:
    assert plan(machine(FREE, sync=0.0)).deeper(level())
    assert not plan(machine(FREE, sync=0.3)).deeper(level())


def test_a_round_that_is_checked_is_expected_to_wait_for_every_level() -> None:
    made = plan(machine(FREE, sync=0.05))
    made.deeper(level())
    made.deeper(level())
    made.choose()
    assert made.forecast == Forecast(1.75, pytest.approx(0.3), 1.0, 3, 2)


def test_a_round_that_checks_two_levels_at_a_time_is_expected_to_wait_once_for_both() -> None:
    made = plan(machine(FREE, sync=0.05), check_interval=2)
    made.deeper(level())
    made.deeper(level())
    made.choose()
    assert made.forecast == Forecast(1.75, pytest.approx(0.25), 1.0, 3, 2)


def test_a_chain_that_was_not_checked_is_expected_to_give_all_its_paths_without_waits() -> None:
    made = plan(machine(FREE, sync=0.05), is_checked=False)
    made.take_in([level(), level(), level()])
    assert made.forecast == Forecast(1.875, pytest.approx(0.3), 1.0, 4, 3)

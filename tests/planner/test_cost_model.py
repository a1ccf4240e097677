"""Costs of a machine: what was measured is kept, what is live follows, nothing damaged is read."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.errors import EagleError
from mlx_eagle.planner.cost_model import PUBLISHED_ROWS, Costs, LiveCosts

SECONDS = st.floats(1e-5, 1.0)
CLIP = 0.25  # share by which one observation may differ from what was expected


@st.composite
def measured(draw: st.DrawFn) -> Costs:
    """Draw the costs of any machine: curves with steps, at one to four contexts."""
    contexts = tuple(sorted(draw(st.sets(st.integers(0, 40_000), min_size=1, max_size=4))))
    column = st.tuples(*[SECONDS] * len(contexts))
    rows = draw(st.dictionaries(st.integers(2, 64), column, max_size=6))
    draft = tuple(draw(st.lists(SECONDS, min_size=1, max_size=8)))
    return Costs(contexts, {1: draw(column)} | rows, draw(column), draft, draw(SECONDS))


TWO_CONTEXTS = Costs((100, 300), {1: (2.0, 3.0), 4: (4.0, 8.0)}, (1.0, 2.0), (0.5, 0.7, 0.9), 0.1)


def test_costs_between_two_contexts_lie_on_the_line_through_them() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    assert live.verify(4, 200) == pytest.approx(6.0)
    assert live.plain(250) == pytest.approx(1.75)


def test_costs_beyond_the_longest_context_go_on_rising() -> None:
    assert LiveCosts(TWO_CONTEXTS).verify(1, 500) == pytest.approx(4.0)


def test_costs_below_the_shortest_context_are_those_of_the_shortest() -> None:
    assert LiveCosts(TWO_CONTEXTS).verify(1, 0) == pytest.approx(2.0)


def test_levels_that_were_not_measured_cost_a_mean_step_each() -> None:
    assert LiveCosts(TWO_CONTEXTS).draft(5) == pytest.approx(1.3)
    assert LiveCosts(TWO_CONTEXTS).draft(0) == 0.0


@given(measured())
def test_every_measured_cost_is_what_it_was_measured_as(costs: Costs) -> None:
    live = LiveCosts(costs)
    for at, context in enumerate(costs.contexts):
        for n_rows, column in costs.verify.items():
            # A cost that was measured lower at a longer context is taken for the higher one.
            assert live.verify(n_rows, context) == pytest.approx(max(column[: at + 1]))
        known = min(max(costs.plain[: at + 1]), live.verify(1, context))
        assert live.plain(context) == pytest.approx(known)
    for depth, seconds in enumerate(costs.draft, start=1):
        assert live.draft(depth) == pytest.approx(seconds)


@given(measured(), st.integers(0, 100_000), st.integers(1, 100_000))
def test_no_cost_falls_with_the_context(costs: Costs, context: int, more: int) -> None:
    live = LiveCosts(costs)
    for n_rows in costs.rows:
        assert live.verify(n_rows, context + more) >= live.verify(n_rows, context) * (1 - 1e-9)


def test_a_plain_cost_that_was_measured_too_high_does_not_stay() -> None:
    """Where rounds of one row seem cheaper than plain ones, none of these are made."""
    live = LiveCosts(Costs((0,), {1: (1.0,), 2: (1.5,)}, (1.6,), (0.1,), 0.0))
    assert live.plain(0) == pytest.approx(1.0)


def test_costs_of_another_machine_take_their_scale_from_the_median_of_the_first_times() -> None:
    live = LiveCosts(Costs.published(), is_measured=False)
    for seconds in (0.5, 0.02, 0.02, 0.02, 0.02):  # the first one is a stall
        live.observe(1, live.verify(1, 0), seconds)
    assert live.verify(1, 0) == pytest.approx(0.02)


def test_live_costs_come_near_the_truth_however_long_they_run() -> None:
    truth = {1: 1.0, 2: 2.5, 4: 0.8}
    live = LiveCosts(Costs((0,), dict.fromkeys(truth, (1.5,)), (1.0,), (0.1,), 0.0))
    for index in range(60_000):
        n_rows = (1, 2, 4)[index % 3]
        live.observe(n_rows, live.verify(n_rows, 0), truth[n_rows])
    for n_rows, seconds in truth.items():
        assert live.verify(n_rows, 0) == pytest.approx(seconds, rel=0.05)


@given(measured(), st.integers(0, 200_000))
def test_no_context_makes_a_cost_less_than_nothing(costs: Costs, context: int) -> None:
    live = LiveCosts(costs)
    assert live.plain(context) > 0
    assert all(live.verify(n_rows, context) > 0 for n_rows in costs.rows)


def test_without_checking_all_waits_and_the_building_of_the_graph_are_saved() -> None:
    live = LiveCosts(replace(TWO_CONTEXTS, build=0.15))
    assert live.checks(3) == pytest.approx(3 * 0.1 + 0.15)
    assert live.draft(3) == pytest.approx(0.9)
    assert live.draft(3, is_checked=False) == pytest.approx(0.9 - 0.45)


def test_levels_read_back_two_at_a_time_are_waited_for_half_as_often() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    assert live.draft(3, interval=2) == pytest.approx(0.9 - 0.1)
    assert live.draft(3, interval=8) == pytest.approx(0.9 - 0.2)


@pytest.mark.parametrize(("sync", "interval"), [(0.0, 1), (0.01, 1), (0.05, 3), (0.1, 4)])
def test_the_dearer_a_wait_the_more_levels_are_read_back_at_a_time(
    sync: float, interval: int
) -> None:
    """The least sum of waits and of levels in vain, where a level takes 0.1 without its wait."""
    draft = tuple(depth * (0.1 + sync) for depth in range(1, 9))
    live = LiveCosts(Costs((0,), {1: (1.0,), 9: (1.0,)}, (1.0,), draft, sync))
    assert live.check_interval(8) == interval
    waste = {i: 8 / i * sync + (i - 1) / 2 * 0.1 for i in range(1, 9)}
    assert waste[interval] == min(waste.values())


def test_waits_that_were_measured_too_long_leave_drafting_something() -> None:
    live = LiveCosts(replace(TWO_CONTEXTS, sync=5.0))
    assert live.draft(2, is_checked=False) == pytest.approx(0.1 * 0.7)


def test_the_best_chain_is_drafted_without_checking_and_no_deeper_than_allowed() -> None:
    costs = Costs((0,), {1: (1.0,), 2: (1.2,), 4: (1.4,)}, (1.0,), (0.3, 0.4, 0.5), 0.1)
    live = LiveCosts(costs)
    assert live.best_chain(0.5, 0, 8) == (pytest.approx(1.875 / (0.2 + 1.4)), 4)
    assert live.best_chain(0.5, 0, 2) == (pytest.approx(1.5 / (0.2 + 1.2)), 2)
    assert live.best_chain(0.5, 0, 0) == (0.0, 1)


def test_costs_stored_before_the_graph_was_timed_are_read() -> None:
    fields = TWO_CONTEXTS.to_dict()
    del fields["build"]
    assert Costs.from_dict(fields) == TWO_CONTEXTS


@given(measured())
def test_stored_costs_come_back_as_they_were(costs: Costs) -> None:
    assert Costs.from_dict(costs.to_dict()) == costs


def test_rows_are_ascending_in_whatever_order_they_were_measured() -> None:
    costs = Costs((0,), {8: (2.0,), 1: (1.0,), 4: (1.5,)}, (1.0,), (0.1,), 0.0)
    assert costs.rows == [1, 4, 8]


def test_published_costs_stand_in_at_the_speed_of_this_machine() -> None:
    costs = Costs.published(0.02)
    assert costs.rows == sorted(PUBLISHED_ROWS)
    assert LiveCosts(costs).plain(4096) == pytest.approx(0.02)
    assert LiveCosts(costs).verify(4, 0) == pytest.approx(0.02 * PUBLISHED_ROWS[4])


DAMAGES: dict[str, Any] = {
    "no field": {"plain": None},
    "not a number": {"draft": ["fast"]},
    "not a list": {"plain": 3.0},
    "rows are a list": {"verify": [1.0]},
    "rows are not numbers": {"verify": {"one": [1.0, 1.0]}},
    "no single row": {"verify": {"4": [4.0, 8.0]}},
    "a column too short": {"plain": [1.0]},
    "no context": {"contexts": [], "plain": [], "verify": {"1": []}},
    "infinite": {"plain": [1.0, math.inf]},
    "not a number of seconds": {"plain": [1.0, math.nan]},
    "zero": {"draft": [0.0]},
    "negative": {"verify": {"1": [-1.0, 1.0]}},
    "a wait below zero": {"sync": -0.1},
    "a wait that is no number": {"sync": math.nan},
    "a graph that takes less than nothing": {"build": -0.1},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_costs_are_refused(damage: dict[str, Any]) -> None:
    fields = TWO_CONTEXTS.to_dict() | damage
    with pytest.raises(EagleError, match="costs of a machine"):
        Costs.from_dict({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize("fields", [[], "costs", None, 3], ids=repr)
def test_what_is_no_mapping_is_refused(fields: Any) -> None:
    with pytest.raises(EagleError, match="costs of a machine"):
        Costs.from_dict(fields)


EVENTS = st.lists(st.tuples(st.sampled_from(["plain", "draft", 1, 4]), st.floats(0.5, 2.0)))


def seconds_of(live: LiveCosts, what: str | int) -> float:
    if what == "plain":
        return live.plain(200)
    return live.draft(2) if what == "draft" else live.verify(int(what), 200)


@given(EVENTS, st.sampled_from(["plain", "draft", 1, 4]), st.floats(1e-12, 1e12))
def test_a_stall_of_any_length_moves_no_cost_by_more_than_its_share(
    before: list[tuple[str | int, float]], what: str | int, factor: float
) -> None:
    live = LiveCosts(TWO_CONTEXTS)
    for earlier, off in before:
        live.observe(earlier, seconds_of(live, earlier), off * seconds_of(live, earlier))
    costs = {key: seconds_of(live, key) for key in ("plain", "draft", 1, 4)}
    live.observe(what, costs[what], factor * costs[what])
    # What was learnt of other costs fades a little whenever one is observed.
    fading = math.exp(LiveCosts.RETURN * abs(math.log(2.0)))
    share = LiveCosts.RATE * (1 + (LiveCosts.PLAIN_WEIGHT if what == "plain" else 1)) / 2
    most = (1 + CLIP) ** share * fading
    for key, cost in costs.items():
        assert 1 / most <= seconds_of(live, key) / cost <= most


def load(live: LiveCosts) -> float:
    """How much slower everything is than it was measured."""
    return live.checks(1) / (live.measured.sync + live.measured.build)


def test_a_stall_is_forgotten_by_what_follows() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    live.observe(4, live.verify(4, 100), 1000.0)
    assert live.verify(4, 100) > 4.0
    for _ in range(30):
        live.observe(4, live.verify(4, 100), 4.0)
    assert live.verify(4, 100) == pytest.approx(4.0, rel=1e-3)


def test_a_machine_that_becomes_slower_is_followed_within_forty_rounds() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    for _ in range(40):
        live.observe(4, live.verify(4, 100), 6.0)
    assert live.verify(4, 100) == pytest.approx(6.0, rel=0.02)


def test_news_of_one_cost_are_half_believed_of_the_others() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    live.observe(4, 4.0, 4.4)
    own, others = math.log(live.verify(4, 100) / 4.0), math.log(live.plain(100) / 1.0)
    assert own == pytest.approx(2 * others)
    assert live.checks(1) == pytest.approx(0.1 * math.exp(others))


def test_what_is_as_expected_changes_nothing() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    for _ in range(5):
        live.observe("plain", 1.0, 1.0)
    assert (live.plain(100), live.checks(1)) == (1.0, 0.1)


def test_what_was_learnt_of_one_cost_alone_fades_while_others_are_observed() -> None:
    live = LiveCosts(TWO_CONTEXTS)
    for _ in range(20):
        live.observe(4, live.verify(4, 100), 6.0)
    off = live.verify(4, 100) / load(live) / 4.0
    for _ in range(500):
        live.observe("plain", live.plain(100), live.plain(100))
    kept = math.log(live.verify(4, 100) / load(live) / 4.0) / math.log(off)
    assert kept == pytest.approx(math.exp(-500 * LiveCosts.RETURN), rel=0.01)

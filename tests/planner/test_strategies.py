"""Ways of drafting compared: by what each would have made of the same drafts."""

import pytest

from mlx_eagle.planner.acceptance_model import Acceptance, Bins
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.policy import Level, Node
from mlx_eagle.planner.strategies import Draft, Mean, Pace, Prospects, Tree, Way, best_tree

DEPTH = 4


def machine(sync: float, step: float = 0.1) -> LiveCosts:
    """Rows are free up to 8, a level costs a step and a wait."""
    draft = tuple(d * (step + sync) for d in range(1, DEPTH + 1))
    return LiveCosts(Costs((0,), dict.fromkeys(range(1, 9), (1.0,)), (1.0,), draft, sync))


class Half(Bins):
    """Everything is accepted half of the time, whatever the confidence."""

    def __getitem__(self, confidence: float) -> float:
        return 0.5


def draft(n_levels: int, n_children: int = 1) -> Draft:
    made, acceptance = Draft(0), Acceptance(Half(), Half())
    for _ in range(n_levels):
        made.add(Level(list(range(n_children)), [0.5] * n_children), acceptance)
    return made


def test_means_begin_as_plain_means() -> None:
    mean = Mean(0.1)
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == pytest.approx(3.0)
    mean.add(10.0, weight=0.5)
    assert mean.value == pytest.approx(6.5)


def test_a_pace_is_tokens_over_seconds_not_a_mean_of_rates() -> None:
    pace = Pace(0.01)
    assert pace.rate == 0.0
    pace.add(1.0, 1.0)
    pace.add(5.0, 2.0)
    assert pace.rate == pytest.approx(2.0)


def test_a_draft_knows_its_paths() -> None:
    made = draft(2, n_children=2)
    assert made.reach == [0.5, 0.25]
    assert made.nodes == [
        (0.5, Node(0, 0)),
        (0.5, Node(0, 1)),
        (0.25, Node(1, 0)),
        (0.25, Node(1, 1)),
    ]
    assert made.paths(1) == [0.5, 0.5]


def test_ways_pay_for_the_waits_that_they_make() -> None:
    costs = machine(sync=0.05)
    assert Way(4, 1).seconds(costs, 4) == pytest.approx(0.6)
    assert Way(4, 4).seconds(costs, 4) == pytest.approx(0.45)
    assert Way(4, 2).seconds(costs, 3) == pytest.approx(0.4)
    assert Way(4, 0).seconds(costs, 4) == pytest.approx(0.4)


def test_the_best_tree_weighs_tokens_against_seconds() -> None:
    costs = LiveCosts(Costs((0,), {1: (1.0,), 2: (1.2,), 3: (1.9,)}, (1.0,), (0.1,), 0.0))
    found = best_tree([0.5, 0.4], 0, costs, price=1.0, drafting=0.1)
    assert found == Tree(worth=pytest.approx(0.2), tokens=1.5, n_rows=2)
    assert best_tree([0.5, 0.4], 0, costs, price=0.1, drafting=0.1).n_rows == 3
    assert best_tree([0.1, 0.1], 0, costs, price=1.0, drafting=0.1).n_rows == 1


def test_levels_that_were_not_drafted_are_imagined_as_they_usually_are() -> None:
    prospects = Prospects(machine(0.0), DEPTH, n_children=2, first_guess=0.6)
    assert prospects.beyond(draft(1), 2) == [[0.3, 0.0], pytest.approx([0.18, 0.0])]
    prospects.see([0.8, 0.1])
    usual = (8 * 0.6 + 0.8) / 9  # the guess counts for eight levels
    assert prospects.beyond(draft(1), 2) == [
        pytest.approx([0.5 * usual, 0.05]),
        pytest.approx([0.5 * usual**2, 0.05 * usual]),
    ]


def test_waits_that_were_measured_too_long_leave_drafting_something() -> None:
    costs = LiveCosts(Costs((0,), {1: (1.0,)}, (1.0,), (0.1, 0.2), 5.0))
    assert Way(2, 0).seconds(costs, 2) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("sync", "expected"),
    [
        # What the drafts give in this world, whichever way they are drafted: 1.94 tokens at most.
        (0.0, Way(DEPTH, 1)),
        (0.3, Way(2, 0)),
    ],
)
def test_the_dearer_a_wait_the_fewer_are_made(sync: float, expected: Way) -> None:
    prospects = Prospects(machine(sync), DEPTH, n_children=1, first_guess=0.5)
    for _ in range(20):
        prospects.see([0.5])
        prospects.learn(draft(DEPTH), price=1.0)
        seconds = Way(DEPTH, 1).seconds(prospects.costs, 2)  # as a check that stops in time
        prospects.looking.add(1.75, 1.0 + seconds)
    assert prospects.best(0)[1] == expected

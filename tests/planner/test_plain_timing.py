"""Where drafting seems to pay, plain tokens are timed now and then: they tell whether it does."""

from random import Random

import pytest

from cases import broad
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.planner import Phase, Planner
from mlx_eagle.planner.policy import Level, Outcome
from mlx_eagle.tree import PLAIN

RIGHT, WRONG = 1, 0
SYNC = 0.2  # waiting is so dear that drafts are not looked at


def planner(kind: type[Planner] = Planner) -> Planner:
    """A planner that was told that rows cost nothing and a level next to nothing."""
    rows = dict.fromkeys(range(1, 9), (1.0,))
    draft = tuple(depth * (0.01 + SYNC) for depth in range(1, 9))
    costs = LiveCosts(Costs((0,), rows, (1.0,), draft, SYNC))
    if kind is LookupPlanner:
        return LookupPlanner(costs, Acceptance(), Acceptance(), 8)
    return Planner(costs, Acceptance(), 8)


def play(plan: Planner, share: float, drafted: float, n_tokens: int) -> tuple[float, int]:
    """Decode where `share` of the tokens are foreseen and a round that drafts costs `drafted`.

    Returns:
        Plain tokens' times that it took, and how many tokens were decoded plainly.
    """
    random, seconds, n_plain, at, is_ahead = Random(4), 0.0, 0, 0, False
    while at < n_tokens:
        chosen = plan.plan(at)
        if chosen.shape == PLAIN:
            plan.record(Outcome([RIGHT], None, 1.0 if is_ahead else None))
            seconds, n_plain, at, is_ahead = seconds + 1.0, n_plain + 1, at + 1, True
            continue
        depth = chosen.shape.depth
        hits = next((n for n in range(depth) if random.random() > share), depth)
        levels = [Level([RIGHT if n < hits else WRONG], [share]) for n in range(depth)]
        if chosen.lookup != PLAIN:
            assert chosen.check is not None
            chosen.check.take_lookup([])
        plan.record(Outcome([RIGHT] * (hits + 1), None, drafted, levels))
        seconds, at, is_ahead = seconds + drafted, at + hits + 1, False
    return seconds, n_plain


@pytest.mark.parametrize("kind", [Planner, LookupPlanner])
def test_drafting_that_does_not_pay_is_found_out_though_all_was_measured_wrongly(
    kind: type[Planner],
) -> None:
    """A round that is dearer than was measured makes plain tokens seem dearer, by half of that."""
    plan = planner(kind)
    play(plan, 0.25, 1.5, 400)
    seconds, _ = play(plan, 0.25, 1.5, 1000)
    assert 1000 / seconds > 0.97
    assert plan.costs.plain(0) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("kind", [Planner, LookupPlanner])
@pytest.mark.parametrize("share", [0.5, broad(0.75)])
def test_timing_plain_tokens_costs_at_most_half_a_percent(
    kind: type[Planner], share: float
) -> None:
    plan = planner(kind)
    play(plan, share, 1.1, 500)
    seconds, n_plain = play(plan, share, 1.1, 3000)
    gain = (3000 - n_plain) / (seconds - n_plain)
    assert n_plain >= Phase().next_pause
    once = Phase().next_pause  # the first was due before
    assert (n_plain - once) * (gain - 1) < 1.2 * Planner.PROBING * 3000

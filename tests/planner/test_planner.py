"""The planner: it verifies the best there is, and does not go on with what does not pay."""

import itertools
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.planner import Phase, Planner, next_state
from mlx_eagle.planner.policy import HEAD, FixedShape, Level, Node, Outcome
from mlx_eagle.planner.throughput import Throughput
from mlx_eagle.tree import PLAIN, TreeShape

FLAT = dict.fromkeys(range(1, 9), 1.0)
LINEAR = {n: float(n) for n in range(1, 9)}
RIGHT, WRONG = 1, 0  # a target that always says 1


def machine(rows: dict[int, float], step: float = 0.05, sync: float = 0.0) -> LiveCosts:
    """A machine by its curve, in plain tokens; every drafted level costs a step and a wait."""
    draft = tuple(d * (step + sync) for d in range(1, 9))
    return LiveCosts(Costs((0,), {n: (c,) for n, c in rows.items()}, (1.0,), draft, sync))


def planner(rows: dict[int, float], step: float = 0.05, sync: float = 0.0) -> Planner:
    return Planner(machine(rows, step, sync), Acceptance(), max_depth=8)


def known() -> Acceptance:
    """What is known of a head that was used before, and nearly nothing."""
    acceptance = Acceptance()
    acceptance.observe([0.5], 0)
    return acceptance


def level(*confidences: float, right: bool = True) -> Level:
    """A level whose likeliest token is the target's, or none is."""
    tokens = [RIGHT if right else WRONG] + [2 + i for i in range(len(confidences) - 1)]
    return Level(tokens, confidences)


def play(plan: Planner, confidence: float, right: bool) -> tuple[int, float]:
    """One round of a head that is always as confident, and always right or wrong.

    Returns:
        Tokens, and seconds as the costs say.
    """
    chosen = plan.plan(0)
    costs = plan.costs
    if chosen.shape == PLAIN:
        plan.record(Outcome([RIGHT], None, costs.plain(0)))
        return 1, costs.plain(0)
    made = level(confidence, (1 - confidence) / 2, right=right)
    if chosen.check is None:
        depth = n = chosen.shape.depth
        levels = [Level(made.tokens[:1], made.confidences[:1])] * depth
        drafting, verifying = costs.draft(depth, is_checked=False), costs.verify(n + 1, 0)
        emitted = [RIGHT] * (n + 1 if right else 1)
        plan.record(Outcome(emitted, None, drafting + verifying, levels))
        return len(emitted), drafting + verifying
    depth = 1
    while chosen.check.deeper(made):
        depth += 1
    nodes = chosen.check.choose()
    accepted = sum(node.child == 0 for node in nodes) if right else 0
    emitted = [RIGHT] * (accepted + 1)
    seconds = costs.draft(depth), costs.verify(len(nodes) + 1, 0)
    plan.record(Outcome(emitted, *seconds))
    return len(emitted), sum(seconds)


def speed(plan: Planner, n_rounds: int, confidence: float, right: bool) -> float:
    """Tokens per plain token's time over some rounds."""
    played = [play(plan, confidence, right) for _ in range(n_rounds)]
    return sum(tokens for tokens, _ in played) / sum(seconds for _, seconds in played)


def test_a_fixed_shape_never_changes() -> None:
    policy = FixedShape(TreeShape.chain(3))
    assert policy.plan(7).shape == TreeShape.chain(3) and policy.plan(7).check is None
    assert not policy.stays_plain() and FixedShape(PLAIN).stays_plain()


def test_rows_that_cost_their_number_are_hopeless_and_the_reason_is_said() -> None:
    plan = planner(LINEAR)
    assert plan.is_hopeless(0) and not planner(FLAT).is_hopeless(0)
    assert "verifying 2 tokens takes 2.00 times as long as decoding one here" in (
        plan.why_hopeless(0)
    )


confidences = st.lists(
    st.floats(0.01, 0.97).flatmap(
        lambda first: st.tuples(st.just(first), st.floats(0, min(first, 1 - first)))
    ),
    min_size=1,
    max_size=3,
)
curves = st.lists(st.floats(0.02, 1.5), min_size=1, max_size=6).map(
    lambda steps: {n: 1 + c for n, c in enumerate(itertools.accumulate(steps, initial=0.0), 1)}
)


@given(confidences, curves, st.sets(st.integers(2, 6)))
def test_the_verified_nodes_are_the_best_of_all_trees_of_measured_sizes(
    drafted: list[tuple[float, float]], curve: dict[int, float], unmeasured: set[int]
) -> None:
    rows = {n: c for n, c in curve.items() if n == 1 or n not in unmeasured}
    if len(rows) == 1:
        rows[2] = 1.5
    plan = planner(rows)
    check = plan.plan(0).check
    assert check is not None
    rates: dict[Node, float] = {}
    above = 1.0
    for depth, children in enumerate(drafted):
        check.deeper(Level([1, 2], children))
        own = plan.acceptance.children(children)
        rates |= {Node(depth, child): above * rate for child, rate in enumerate(own)}
        above *= own[0]
    nodes = check.choose()
    assert all(level == 0 or Node(level - 1, 0) in nodes for level, _ in nodes)

    def worth(chosen: tuple[Node, ...]) -> float:
        return 1 + sum(rates[node] for node in chosen) - plan.round.price * rows[len(chosen) + 1]

    subsets = itertools.chain.from_iterable(
        itertools.combinations(rates, n - 1) for n in rows if n - 1 <= len(rates)
    )
    assert worth(tuple(nodes)) == pytest.approx(max(map(worth, subsets)))


def test_a_step_of_the_curve_is_not_stepped_over() -> None:
    rows = {1: 1.0, 2: 1.0, 3: 1.0, 4: 3.5, 5: 3.5, 6: 3.5}
    plan = planner(rows, step=0.01)
    for _ in range(20):
        play(plan, 0.9, right=True)
        assert plan.round.forecast is None or plan.round.forecast.n_rows <= 3


def test_the_forecast_is_the_sum_of_what_is_verified() -> None:
    plan = planner(FLAT)
    check = plan.plan(0).check
    assert check is not None
    check.deeper(level(0.6, 0.3))
    nodes = check.choose()
    first, sibling = plan.acceptance.children([0.6, 0.3])
    assert nodes == [Node(0, 0), Node(0, 1)]
    assert plan.round.forecast is not None
    assert plan.round.forecast.tokens == pytest.approx(1 + first + sibling)
    assert (plan.round.forecast.n_rows, plan.round.forecast.depth) == (3, 1)


def test_a_right_head_is_used_to_the_full_and_drafted_deeply() -> None:
    plan = planner(FLAT)
    assert speed(plan, 40, 0.9, right=True) > 3.5
    assert plan.round.forecast is not None and plan.round.forecast.n_rows == 8


@pytest.mark.parametrize("confidence", [0.05, 0.5, 0.99])
def test_a_head_that_is_always_wrong_costs_next_to_nothing(confidence: float) -> None:
    plan = planner({n: 1 + 0.15 * (n - 1) for n in range(1, 9)})
    speed(plan, 100, confidence, right=False)
    assert speed(plan, 1000, confidence, right=False) > 0.985
    assert "drafting would give 1.0" in plan.why_plain(0)


def test_speculation_comes_back_when_the_head_is_right_again() -> None:
    plan = planner({n: 1 + 0.15 * (n - 1) for n in range(1, 9)})
    speed(plan, 600, 0.8, right=False)
    assert plan.stays_plain() or speed(plan, 20, 0.8, right=False) > 0.9
    speed(plan, 120, 0.8, right=True)
    assert speed(plan, 50, 0.8, right=True) > 1.8


def test_plain_rounds_are_promised_only_where_they_follow() -> None:
    plan = planner({n: 1 + 0.3 * (n - 1) for n in range(1, 9)})
    for _ in range(400):
        promised = plan.stays_plain()
        play(plan, 0.6, right=False)
        assert not promised or plan.round.forecast is None


@pytest.mark.parametrize(
    ("sync", "build", "is_checked"),
    [
        (0.001, 0.0, True),
        (0.2, 0.0, False),
        (0.0, 0.5, False),
    ],
)
def test_waits_that_cost_more_than_checking_gives_are_not_made(
    sync: float, build: float, is_checked: bool
) -> None:
    """Neither those for levels nor the one for the graph."""
    costs = replace(machine(FLAT, sync=sync).measured, build=build)
    plan = Planner(LiveCosts(costs), Acceptance(), 8)
    for _ in range(100):
        play(plan, 0.85, right=True)
        assert plan.round.is_checked is is_checked


@pytest.mark.parametrize(("sync", "interval"), [(0.001, 1), (0.03, 3)])
def test_levels_are_checked_several_at_a_time_where_a_wait_costs_much(
    sync: float, interval: int
) -> None:
    plan = Planner(machine(FLAT, sync=sync), known(), 8)
    assert plan.plan(0).check_interval == plan.round.check_interval == interval


def test_a_chain_without_checking_is_as_deep_as_pays_at_the_acceptance_of_late() -> None:
    plan = planner(dict.fromkeys(range(1, 9), 1.0), step=0.1, sync=0.2)
    speed(plan, 60, 0.99, right=True)
    deep = plan.plan(0).shape.depth
    for _ in range(30):
        play(plan, 0.3, right=True)
    # The bins have learnt that a confidence of 0.3 is right here; one of 0.1 is not.
    for _ in range(30):
        play(plan, 0.1, right=False)
    plan.phase = Phase()
    assert deep == 7 and plan.plan(0).shape.depth == 1


def test_a_pause_doubles_until_probing_is_cheap_enough() -> None:
    phase, pauses = Phase(), []
    for _ in range(7):
        phase = next_state(phase, pays=False, is_promising=False, longest=60)
        pauses.append(phase.plain_left)
    assert pauses == [4, 8, 16, 32, 60, 60, 60]


def test_a_pause_is_never_shorter_than_the_shortest() -> None:
    phase = next_state(Phase(), pays=False, is_promising=False, longest=0)
    assert phase == Phase(4, 4)


def test_pauses_begin_with_the_shortest_after_a_surprise_and_where_drafting_pays() -> None:
    late = Phase(0, 64)
    assert next_state(late, pays=False, is_promising=True, longest=500) == Phase(4, 8)
    assert next_state(late, pays=False, is_promising=False, longest=500) == Phase(64, 128)
    assert next_state(late, pays=True, is_promising=False, longest=500) == Phase()


def checked(plan: Planner, confidence: float, right: bool) -> None:
    """A round of one drafted level."""
    check = plan.plan(0).check
    assert check is not None
    check.deeper(level(confidence, right=right))
    came = [RIGHT, RIGHT] if check.choose() and right else [RIGHT]
    plan.record(Outcome(came, 0.05, 1.5))


DEAR = {1: 1.0, 2: 1.5, 3: 2.0}


@pytest.mark.parametrize(
    ("confidence", "right", "pause"),
    [
        (0.1, True, 4),  # nobody would have expected this token
        (0.1, False, 64),
        (0.75, True, 4),  # two tokens in the time of one and a half
        (0.75, False, 64),
    ],
)
def test_a_token_that_was_not_expected_or_cost_nothing_ends_the_long_pauses(
    confidence: float, right: bool, pause: int
) -> None:
    plan = planner(DEAR)
    plan.recent = Throughput([1.0, 1.0, 2.0], 100, 100)
    plan.phase = Phase(0, 64)
    checked(plan, confidence, right)
    assert plan.phase.plain_left == pause


def test_drafting_that_gives_clearly_less_than_it_promises_is_not_trusted() -> None:
    """What is expected of the rounds would pay; what came does not."""
    for came, pays in ((1.5, False), (2.3, True)):
        plan = planner(DEAR)
        plan.recent = Throughput([2.4, came, 2.0], 100, 100)
        checked(plan, 0.9, right=True)
        assert plan.stays_plain() is not pays


def test_a_few_rounds_do_not_yet_say_that_less_comes_than_is_promised() -> None:
    plan = planner(DEAR)
    plan.recent = Throughput([2.4, 1.0, 2.0], 5, 5)
    checked(plan, 0.9, right=True)
    assert not plan.stays_plain()


def test_drafting_is_not_given_up_before_some_rounds() -> None:
    plan = planner(DEAR)
    for n in (1, 2, 3):
        checked(plan, 0.02, right=False)
        assert plan.stays_plain() is (n == 3)


def test_a_head_of_which_nothing_is_known_drafts_deeper_as_it_proves_right() -> None:
    plan = planner(FLAT)
    depths = []
    for _ in range(3):
        depths.append(plan.plan(0).shape.depth)
        play(plan, 0.9, right=True)
    assert depths == [2, 5, 7]
    wrong = planner(FLAT)
    play(wrong, 0.9, right=False)
    assert wrong.plan(0).shape.depth == 2


def test_a_head_that_is_known_drafts_deeply_from_the_start() -> None:
    assert Planner(machine(FLAT), known(), 8).plan(0).shape.depth == 7


def test_a_first_draft_is_as_deep_as_the_fewest_rows_that_were_measured() -> None:
    assert planner({1: 1.0, 6: 1.1}).plan(0).shape.depth == 5


def test_a_first_answer_with_a_useless_head_costs_little() -> None:
    """Of 64 tokens, with rows as dear as on a CPU."""
    plan = planner({1: 1.0, 2: 1.12, 3: 1.2, 4: 1.28, 5: 1.38, 6: 1.5, 8: 1.7}, step=0.1)
    assert speed(plan, 64, 0.8, right=False) > 0.965


def test_a_probe_after_a_pause_weighs_more_than_a_round_among_many() -> None:
    weights = []
    for n_recent in (100, None):
        plan = planner(DEAR)
        plan.recent = Throughput([1.0, 1.0, 2.0], 100, 100)
        if n_recent is None:
            checked(plan, 0.02, right=False)
            assert plan.stays_plain()
            plan.phase, plan.recent.means = Phase(), [1.0, 1.0, 2.0]
        checked(plan, 0.9, right=True)
        weights.append((plan.recent.means[1] - 1.0) / (2 - 1.0))
    assert weights == [
        pytest.approx(Throughput.RATE),
        pytest.approx(1 / (Throughput.BEFORE_PROBE + 1)),
    ]


@pytest.mark.parametrize(("one_row", "probe"), [(1.0, 0.2), (1.3, 0.2 + 2 * 0.3)])
def test_probes_take_no_more_than_their_share_of_the_time(one_row: float, probe: float) -> None:
    """One costs a level, and twice what a round of one row takes longer than a plain one."""
    plan = planner(DEAR | {1: one_row}, step=0.2)
    for _ in range(3000):
        play(plan, 0.9, right=False)
    assert plan.phase.next_pause == pytest.approx(probe / plan.PROBING, rel=0.05)


def test_seconds_are_priced_at_the_rate_of_drafting_and_of_plain_decoding_at_least() -> None:
    plan = planner(FLAT)
    plan.plan(0)
    assert plan.round.price == pytest.approx(1.0)
    plan.recent.means = [3.0, 3.0, 1.5]
    plan.plan(0)
    assert plan.round.price == pytest.approx(2.0)
    plan.recent.means = [1.0, 1.0, 1.5]
    plan.plan(0)
    assert plan.round.price == pytest.approx(1.0)


def test_every_round_has_a_plan_of_its_own() -> None:
    plan = planner(FLAT)
    first, second = plan.plan(0).check, plan.plan(0).check
    assert first is not second and second is plan.round


def test_one_long_stall_changes_nothing_that_is_chosen() -> None:
    plan = planner(FLAT)
    speed(plan, 50, 0.9, right=True)
    before = plan.round.forecast
    check = plan.plan(0).check
    assert check is not None
    while check.deeper(level(0.9, 0.05)):
        pass
    nodes = check.choose()
    plan.record(Outcome([RIGHT] * (len(nodes) + 1), 0.05, 1000.0))
    play(plan, 0.9, right=True)
    assert before is not None and plan.round.forecast is not None
    assert plan.round.forecast.n_rows == before.n_rows


def looked_at(plan: Planner, confidence: float) -> list[Node] | None:
    """What is verified of a draft of this confidence at every level; None if nobody looks."""
    check = plan.plan(0).check
    if check is None:
        return None
    while check.deeper(level(confidence)):
        pass
    return check.choose()


def test_rows_that_turn_out_to_wake_more_experts_are_verified_less() -> None:
    """A mixture of experts whose calibration woke few of them: every row adds some of its own."""
    random, early, late = Random(3), list[float](), list[float]()

    def rows(plan: Planner, n_rounds: int, per_row: float) -> float:
        verified = []
        for _ in range(n_rounds):
            nodes = looked_at(plan, 0.75)
            if nodes is None:
                plan.record(Outcome([RIGHT], None, 1.0))
                continue
            right = list(itertools.takewhile(lambda _: random.random() < 0.75, nodes))
            emitted = [RIGHT] * len(right) + [9 if len(right) < len(nodes) else RIGHT]
            draft = plan.round.forecast.draft_seconds if plan.round.forecast else 0.0
            plan.record(Outcome(emitted, draft, 1 + per_row * len(nodes)))
            verified.append(len(nodes) + 1)
        return sum(verified) / len(verified)

    for _ in range(3):
        plan = Planner(machine(FLAT), Acceptance(), 8)
        early.append(rows(plan, 40, per_row=0.0))
        rows(plan, 300, per_row=0.25)
        late.append(rows(plan, 100, per_row=0.25))
    assert sum(early) / 3 > 6 and sum(late) / 3 < 5


def test_a_planner_for_chains_asks_for_the_likeliest_token_only_and_chooses_it() -> None:
    plan = Planner(machine(FLAT), known(), 8, n_children=1)
    assert plan.plan(0).n_children == 1
    for _ in range(4):
        nodes = looked_at(plan, 0.8)
        assert nodes == [Node(depth, 0) for depth in range(len(nodes or []))]
        assert plan.round.forecast is not None and plan.round.forecast.n_rows > 4
        plan.record(Outcome([RIGHT] * (len(nodes) + 1), plan.round.forecast.draft_seconds, 1.0))


def test_rounds_of_two_conversations_that_overlap_are_reviewed_as_they_were_planned() -> None:
    """One is planned before the other is read, where both are answered in turns."""
    plan = planner(FLAT, step=0.01)
    likely, unlikely = (level(0.9, right=True), level(0.2, right=False))
    first = plan.plan(0)
    assert first.check is not None
    first.check.deeper(likely)
    first.check.choose()
    forecast = plan.round.forecast
    second = plan.plan(700)
    assert second.check is not None and second.planned is not first.planned
    second.check.deeper(unlikely)
    second.check.choose()
    review = plan.record(Outcome([RIGHT, RIGHT], 0.01, 1.0, planned=first.planned))
    assert review == (forecast, True, HEAD)
    review = plan.record(Outcome([RIGHT], 0.01, 1.0, planned=second.planned))
    assert review is not None and not review.first_right

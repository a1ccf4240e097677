"""Lookup beside a head, or alone: which source drafts, what is verified, and what is learnt."""

from typing import Any

import pytest

from benchmark_modules import load_benchmark
from mlx_eagle.planner.acceptance_model import Acceptance, Bins
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.planner.lookup_planner import LookupPlanner
from mlx_eagle.planner.policy import ROOT, Level, Node, Outcome
from mlx_eagle.planner.round_plan import RoundPlan
from mlx_eagle.tree import PLAIN

curves, replay, simulate_lookup = map(load_benchmark, ("curves", "replay", "simulate_lookup"))
FREE = dict.fromkeys(range(1, 9), 1.0)
FOREIGN = 99


class Half(Bins):
    """Everything is accepted half of the time, whatever the confidence."""

    def __getitem__(self, confidence: float) -> float:
        return 0.5


class Rarely(Bins):
    """Hardly anything is accepted: what is, is a surprise."""

    def __getitem__(self, confidence: float) -> float:
        return 0.1


class Nearly(Bins):
    """Nearly everything is accepted."""

    def __getitem__(self, confidence: float) -> float:
        return 0.9


def machine(rows: dict[int, float] = FREE, step: float = 0.1, sync: float = 0.0) -> LiveCosts:
    draft = tuple(d * (step + sync) for d in range(1, 9))
    return LiveCosts(Costs((0,), {n: (c,) for n, c in rows.items()}, (1.0,), draft, sync))


def plan(costs: LiveCosts, **changes: Any) -> RoundPlan:
    about = {"usual": 0.5, "price": 1.0, "context": 0, "depth": 8, "is_checked": True} | changes
    found = Acceptance(Nearly(), Nearly())
    return RoundPlan(costs, Acceptance(Half(), Half()), lookup=found, **about)


def chain(tokens: list[int], *, lookup: bool = True) -> list[Level]:
    """Levels of one child each."""
    parents = [ROOT, *(Node(at, 0) for at in range(len(tokens) - 1))]
    return [Level([t], [0.8], p, lookup) for t, p in zip(tokens, parents, strict=False)]


def planner(
    rows: dict[int, float] = FREE, depth: int = 8, n_children: int = 4, **costs: float
) -> LookupPlanner:
    return LookupPlanner(machine(rows, **costs), Acceptance(), Acceptance(), depth, n_children)


def play(found: LookupPlanner, lookup: list[int], head: list[int], truth: list[int]) -> int:
    """Play one round; return how many levels the head drafted, -1 in a plain round."""
    planned = found.plan(0)
    if planned.shape == PLAIN:
        found.record(Outcome(truth[:1], None, None))
        return -1
    check = planned.check
    assert check is not None
    goes_on, n = check.take_lookup(chain(lookup)), 0
    while goes_on and n < min(len(head), planned.shape.depth):
        parent = None if n else ROOT
        goes_on, n = check.deeper(Level([head[n]], [0.8], parent)), n + 1
    nodes = len(check.choose())
    right = sum(1 for _ in iter_agreeing(lookup or head, truth[:nodes]))
    found.record(Outcome(truth[: right + 1], 0.1 * n, 1.0))
    return n


def iter_agreeing(drafted: list[int], truth: list[int]) -> Any:
    for ours, theirs in zip(drafted, truth, strict=False):
        if ours != theirs:
            return
        yield ours


def test_a_head_does_not_draft_beside_a_sure_copy_and_does_where_nothing_was_found() -> None:
    assert not plan(machine()).take_lookup(chain([1, 2, 3, 4, 5, 6, 7]))
    assert plan(machine()).take_lookup([])
    assert not plan(machine(), depth=0).take_lookup([])


def test_a_head_drafts_beside_a_copy_that_is_doubted() -> None:
    doubted = plan(machine(), usual=0.8)
    doubted.lookup = Acceptance(Half(), Half())
    assert doubted.take_lookup(chain([1, 2]))


def test_nodes_of_the_same_text_are_one_and_as_likely_as_the_likelier() -> None:
    made = plan(machine())
    made.take_lookup(chain([1, 2]))
    made.deeper(Level([1, 7], [0.8, 0.1], ROOT))
    made.deeper(Level([9], [0.8]))
    assert set(made.choose()) == {Node(0, 0), Node(1, 0), Node(2, 1), Node(3, 0)}
    assert made.forecast is not None
    # 1: 0.9, 2 below it: 0.81, 9 below it: 0.45, 7: 0.5
    assert made.forecast.tokens == pytest.approx(1 + 0.9 + 0.81 + 0.45 + 0.5)
    assert (made.forecast.n_rows, made.forecast.depth) == (5, 2)


def test_parents_come_first_and_a_sibling_may_have_children() -> None:
    made = plan(machine())
    branches = [
        Level([1, 2], [0.6, 0.3], ROOT, is_lookup=True),
        Level([3], [0.8], Node(0, 1), is_lookup=True),
        Level([4], [0.8], Node(0, 0), is_lookup=True),
    ]
    made.take_lookup(branches)
    assert made.choose() == [Node(0, 0), Node(2, 0), Node(0, 1), Node(1, 0)]


def test_where_one_chain_can_be_verified_it_is_the_better_one() -> None:
    for lookup, nodes in ((Nearly(), [Node(0, 0), Node(1, 0)]), (Half(), [Node(2, 0), Node(3, 0)])):
        made = plan(machine(), one_chain=True)
        made.lookup = Acceptance(lookup, lookup)
        made.acceptance = Acceptance(Bins([9.0] * 12, [10.0] * 12), Half())
        made.take_lookup(chain([1, 2]))
        made.deeper(Level([7], [0.5], ROOT))
        made.deeper(Level([8], [0.5]))
        assert made.choose() == nodes, lookup


def test_hits_are_those_below_accepted_nodes_of_every_source() -> None:
    made = plan(machine())
    made.take_lookup([Level([1, 2], [0.6, 0.3], ROOT, is_lookup=True), *chain([0, 5])[1:]])
    made.deeper(Level([2], [0.5], ROOT))
    made.deeper(Level([3], [0.5]))
    assert made.hits([2, 3, 4]) == [(0, 1), (2, 0), (3, 0)]
    assert made.hits([FOREIGN]) == [(0, None), (2, None)]


def test_each_source_has_an_acceptance_model_of_its_own() -> None:
    found = planner()
    play(found, [1, 2, 3], [], [1, 2, 3, FOREIGN])
    assert found.lookup.first.seen != [0.0] * 12 and not found.acceptance.is_known
    play(found, [], [1, 2], [1, FOREIGN])
    assert found.acceptance.is_known


def test_more_is_looked_up_while_it_is_right_and_little_after_a_miss() -> None:
    found, sizes = planner(), list[int]()
    for _ in range(3):
        n = found.plan(0).lookup.nodes
        sizes.append(n)
        play(found, list(range(n)), [], [*range(n), FOREIGN])
    assert sizes == [4, 7, 7], "as many as may be verified"
    play(found, [1, 2, 3], [], [FOREIGN])
    assert found.n_lookup == 4


def test_a_head_that_is_never_right_rests_while_copies_are_still_drafted() -> None:
    found = planner()
    drafted = [play(found, [], [1, 2], [FOREIGN]) for _ in range(60)]
    assert sum(n > 0 for n in drafted) < 30
    copies = [play(found, [1, 2, 3], [7], [1, 2, 3, FOREIGN]) for _ in range(20)]
    assert sum(n >= 0 for n in copies) > 10


def test_a_surprise_of_what_is_looked_up_shortens_no_pause_of_the_head() -> None:
    found = planner(step=0.5)
    while found.head_phase.next_pause < 16:
        play(found, [], [1, 2], [FOREIGN])
    for lookup, head, next_pause in (([5], [7], 32), ([], [7], 8)):
        while found.head_phase.plain_left:
            play(found, [], [], [FOREIGN])
        found.lookup, found.acceptance = (Acceptance(Rarely(), Rarely()) for _ in range(2))
        assert play(found, lookup, head, [*(lookup or head), FOREIGN]) == 1
        assert found.head_phase.plain_left
        assert found.head_phase.next_pause == next_pause


def test_without_a_head_a_text_that_never_repeats_is_decoded_plainly_but_for_probes() -> None:
    found = planner({1: 1.1} | dict.fromkeys(range(2, 9), 1.2), depth=0)
    rounds = [play(found, [], [], [FOREIGN]) for _ in range(400)]
    assert sum(n >= 0 for n in rounds[100:]) < 0.05 * 300


def test_where_checks_are_expensive_a_head_drafts_unseen_and_a_copy_is_verified() -> None:
    found = planner(sync=0.3)
    for lookup, is_checked in (([], False), (list(range(7)), True)):
        check = found.plan(0).check
        assert isinstance(check, RoundPlan) and not check.is_checked
        check.lookup = Acceptance(Nearly(), Nearly())
        assert check.take_lookup(chain(lookup)) is not is_checked
        assert check.is_checked is is_checked


def test_planners_without_lookup_are_unchanged_by_its_being_there() -> None:
    made = RoundPlan(machine(), Acceptance(Half(), Half()), 0.5, 1.0, 0, 8, True)
    made.deeper(Level([1, 2], [0.5, 0.2]))
    assert made.choose() == [Node(0, 0), Node(0, 1)]


FEW = [
    ("M4 Pro 8B", "copied", "recorded"),
    ("flat", "new", "collapses, recovers"),
    ("M4 Pro 8B, sync 30 %, graph 0 %", "few words", "recorded"),
    ("M4 Pro 8B, flat kernel, sync 5 %, graph 15 %", "copied", "dead head"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Few contests by default, all of them for `--exactness broad` and `full`."""
    if "curve" in metafunc.fixturenames:
        few = metafunc.config.getoption("--exactness") == "quick"
        heads, kinds = simulate_lookup.HEADS, simulate_lookup.TEXTS
        cases = [(c, k, h) for c in curves.CURVES for k in kinds for h in heads]
        metafunc.parametrize(("curve", "kind", "head"), FEW if few else cases)


def test_both_together_are_never_clearly_slower_than_the_better_of_the_two(
    curve: str, kind: str, head: str, is_quick: bool
) -> None:
    trace = replay.variants(replay.Trace.load())[head]
    # Of a single text luck decides where a copy begins: within a pause, or after one.
    n_texts, least = (1, 0.92) if is_quick else (6, 0.95)
    speeds = simulate_lookup.contest(curve, kind, trace, n_texts)
    assert simulate_lookup.margin(speeds) >= least, speeds
    if (kind, head) == ("copied", "recorded"):
        assert speeds["both"] > 1.05 * max(speeds["head"], speeds["lookup"])

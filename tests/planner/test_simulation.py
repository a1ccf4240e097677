"""The planner against every fixed shape and its rival, simulated on published costs.

Half a dozen curves stand for all, each with two traces; `--exactness broad` simulates every curve
with every trace, order and wrong cost.
Traces are recorded (benchmarks/record.py), costs published (benchmarks/curves.py), nothing is drawn
at random that is not seeded, so every figure here is the same on every machine.
"""

import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from benchmark_modules import load_benchmark
from cases import broad
from mlx_eagle.tree import PLAIN, TreeShape

curves, replay, laws, simulate = map(load_benchmark, ("curves", "replay", "laws", "simulate"))
CURVES: list[str] = list(curves.CURVES)
TRACES: list[str] = ["recorded", "collapses", "collapses, recovers", "drifts", "dead head"]
ROUGH_TRACES = ["recorded", "collapses, recovers", "dead head"]
ORDERED = ["M4 Pro 8B", "flat", "M3 Max 5120x17408", "M5 Max Qwen3.8-27B", "linear", "Linux CPU"]
WRONG = ["M4 Pro 8B", "linear", "M3 Ultra 4-bit", "Linux CPU"]
# Rows that cost their number, and nothing up to some; heads that pay a lot, now and then, or never.
FEW_CONTESTS = [
    ("linear", "dead head"),
    ("M4 Pro 8B", "collapses, recovers"),
    ("M4 Pro 8B", "dead head"),
    ("M3 Ultra bf16", "collapses"),
    ("M3 Ultra bf16", "drifts"),
    ("M3 Ultra 8-row kernel", "recorded"),
    ("M3 Ultra 8-row kernel", "collapses, recovers"),
    ("M5 Max Qwen3.5", "collapses"),
    ("M4 Pro 8B, sync 30 %, graph 0 %", "drifts"),
]
FEW_ROUGH = [
    ("M4 Pro 8B", "recorded"),
    ("M3 Ultra 8-row kernel", "dead head"),
]
OF_BEST_FIXED, OF_PLAIN, MEAN_OF_BEST_FIXED = 0.97, 0.98, 1.055

Pairs = list[tuple[str, str]]  # curves and traces


@cache
def traces() -> dict[str, Any]:
    found: dict[str, Any] = replay.variants(replay.Trace.load())
    return found


@cache
def contest(curve: str, trace: str, rough: bool) -> Any:
    return simulate.contest(curve, trace, traces()[trace], rough=rough)


def case(curve: str, trace: str, rough: bool) -> Any:
    name = f"{curve}-{trace}{'-rough' if rough else ''}"
    return pytest.param(curve, trace, rough, id=name)


@pytest.fixture(scope="module")
def contests(is_quick: bool) -> Pairs:
    """The curves and traces that are simulated."""
    return FEW_CONTESTS if is_quick else list(product(CURVES, TRACES))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Few contests by default, all of them for `--exactness broad` and `full`."""
    few, wanted = metafunc.config.getoption("--exactness") == "quick", metafunc.fixturenames
    if "rough" in wanted:
        clean = FEW_CONTESTS if few else product(CURVES, TRACES)
        rough = FEW_ROUGH if few else product(CURVES, ROUGH_TRACES)
        cases = [case(*known, False) for known in clean] + [case(*known, True) for known in rough]
        metafunc.parametrize(("curve", "trace", "rough"), cases)
    elif "seed" in wanted:
        metafunc.parametrize("curve", ORDERED[:1] if few else ORDERED)
        metafunc.parametrize("seed", range(1 if few else 3))
    elif "off" in wanted:
        metafunc.parametrize("curve", WRONG[:1] if few else WRONG)
        metafunc.parametrize("trace", ["recorded", "dead head"])
        metafunc.parametrize("off", [0.8, 1.3] if few else [0.8, 1.15, 1.3])


def test_the_planner_is_nearly_the_best_in_hindsight_and_never_much_slower_than_plain(
    curve: str, trace: str, rough: bool
) -> None:
    found = contest(curve, trace, rough)
    assert found.planner >= OF_PLAIN
    assert found.margin >= OF_BEST_FIXED, (
        f"{found.planner:.3f} x plain; {found.best_fixed} {found.policies[found.best_fixed]:.3f}"
    )


def test_the_planner_is_better_than_the_best_in_hindsight_on_average(contests: Pairs) -> None:
    margins = [contest(curve, trace, False).margin for curve, trace in contests]
    assert sum(margins) / len(margins) >= MEAN_OF_BEST_FIXED


def test_traces_accept_as_much_as_the_reference_did() -> None:
    """Other prompts than the reference's, which reached 2.68 and 3.10 (fixtures/README.md)."""
    trace = traces()["recorded"]
    for shape, reference in ((TreeShape.chain(4), 2.68), (TreeShape(4, 4, 8), 3.10)):
        tokens, rounds = trace.walk(shape)
        assert tokens / rounds == pytest.approx(reference, rel=0.06)


def walk_naively(accepted: np.ndarray) -> tuple[int, int]:
    tokens = rounds = 0
    for text in accepted.tolist():
        at = 0
        while at < len(text):
            tokens, rounds, at = tokens + text[at] + 1, rounds + 1, at + text[at] + 1
    return tokens, rounds


@pytest.mark.parametrize("shape", [PLAIN, TreeShape.chain(3), TreeShape(6, 3, 11)], ids=str)
def test_walking_all_texts_at_once_is_walking_one_after_the_other(shape: TreeShape) -> None:
    trace = traces()["recorded"]
    assert trace.walk(shape) == walk_naively(trace.accepted(shape))


def test_a_wider_tree_of_all_candidates_accepts_at_least_what_a_chain_does() -> None:
    trace = traces()["recorded"]
    chain = trace.accepted(TreeShape.chain(5))
    shape = TreeShape(5, 4, TreeShape(5, 4, 1).n_candidates)
    assert np.mean(trace.accepted(shape) >= chain) > 0.99


def test_what_is_not_foreseen_is_accepted_by_no_tree() -> None:
    dead, collapsed = traces()["dead head"], traces()["collapses"]
    for shape in (TreeShape.chain(3), TreeShape(4, 4, 52)):
        assert dead.accepted(shape).max() == 0
        half = len(collapsed.hits) // 2
        assert collapsed.accepted(shape)[half:].max() == 0
        whole = traces()["recorded"].accepted(shape)
        assert (collapsed.accepted(shape)[: half - 1] == whole[: half - 1]).all()


def test_the_rival_drafts_deep_where_rows_are_free_and_not_at_all_where_they_are_dear() -> None:
    for rows, expected in ((lambda n: 1.0, 4), (lambda n: float(n), 0)):
        law = laws.DepthLaw(4)
        for _ in range(400):
            depth = law.next()
            law.record(depth, min(depth, 4), rows(depth + 1) + 0.2 * depth)
        assert law._selected == expected


def test_the_rival_tries_less_often_while_nothing_changes() -> None:
    law = laws.DepthLaw(4)
    depths = []
    for _ in range(3000):
        depths.append(law.next())
        law.record(depths[-1], 0, 1.0 + 3.0 * depths[-1])
    assert sum(depth > 0 for depth in depths[:300]) > 3 * sum(depth > 0 for depth in depths[-300:])


def mean_lead(contests: Pairs, trace: str) -> float:
    """Return the planner's speed over the rival's, as a geometric mean over a trace's curves."""
    found = [contest(curve, trace, False) for curve, known in contests if known == trace]
    ratios = [result.planner / result.policies["law"] for result in found]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


# Where nothing is left to gain, a law that hardly tries any more is cheaper than one that tries
# every few hundred tokens.
LEADS = {
    "recorded": 1.06,
    "collapses": 1.02,
    "collapses, recovers": 1.1,
    "drifts": 1.02,
    "dead head": 0.99,
}


@pytest.mark.parametrize("law_trace", LEADS)
def test_the_planner_leads_its_rival_on_average_or_nearly_matches_it(
    law_trace: str, contests: Pairs
) -> None:
    assert mean_lead(contests, law_trace) >= LEADS[law_trace]


def test_the_order_of_the_texts_does_not_matter(curve: str, seed: int) -> None:
    """What the planner learns from the first text must not lock it in for the others."""
    trace = traces()["recorded"]
    order = np.random.default_rng(seed).permutation(len(trace.levels))
    found = simulate.contest(curve, "recorded", trace.reordered(order.tolist()))
    assert found.margin >= OF_BEST_FIXED
    assert found.planner >= OF_PLAIN


@pytest.mark.parametrize(
    ("machine", "foreseen", "at_least"),
    [
        ("M4 Pro 8B, sync 30 %, graph 0 %", 0.5, 1.1),
        broad("M5 Max Qwen3.8-27B, sync 30 %, graph 0 %", 0.0, 1.2),
    ],
)
def test_texts_in_which_little_was_accepted_do_not_hold_back_those_that_follow(
    machine: str, foreseen: float, at_least: float
) -> None:
    """Drafting is dear here, so it pauses in the first four texts; sixteen as recorded follow."""
    trace = traces()["recorded"].reordered(list(range(20)))
    at = np.arange(trace.hits.shape[0] * trace.hits.shape[1])
    hard = trace.without(np.where(at < 4 * trace.hits.shape[1], foreseen, 1.0))
    run = simulate.PlannerRun(simulate.Machine(curves.CURVES[machine]), hard)
    assert run.run().rate * run.machine.plain >= at_least


def test_a_plain_cost_that_was_measured_wrongly_is_found_out(
    curve: str, trace: str, off: float
) -> None:
    machine = simulate.Machine(curves.CURVES[curve])
    run = simulate.PlannerRun(machine, traces()[trace], plain_off=off).run()
    assert run.rate * machine.plain >= OF_PLAIN

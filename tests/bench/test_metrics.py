"""Figures of a benchmark, against numbers worked out by hand; who runs when; what is a near-tie."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.bench.asked import Asked
from mlx_eagle.bench.contestants import Contestant, Run, Setting
from mlx_eagle.bench.measure import Trial, measure, schedule
from mlx_eagle.bench.metrics import (
    Probe,
    Sample,
    Spread,
    acceptance_length,
    alphas,
    n_alpha,
    slowest,
    summarise,
)
from mlx_eagle.bench.prompts import ask
from mlx_eagle.bench.specs import parse_spec, parse_specs
from mlx_eagle.bench.text_comparison import (
    BUG,
    NEAR_TIE,
    Verdict,
    compare,
    find_gap,
    first_difference,
    tolerance_of,
)
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.static_tree import MeasuredTree
from mlx_eagle.tree import TreeShape


def sample(name: str, prompt_id: int, category: str, seconds: float, **stats: Any) -> Sample:
    """A generation of eleven tokens, ten of them timed, whose prompt took one second."""
    return Sample(name, 0.0, prompt_id, category, 0, list(range(11)), 10, seconds, 1.0, stats)


def test_the_worked_example_of_the_module_is_true() -> None:
    assert acceptance_length([3, 0, 1, 2]) == 2.5
    assert n_alpha([3, 0, 1, 2], 3) == [3 / 4, 2 / 3, 1 / 2]


def test_n_alpha_is_unknown_where_no_round_got_so_far() -> None:
    assert n_alpha([0, 1, 1], 3) == [2 / 3, 0.0, None]
    assert n_alpha([], 2) == [None, None]


def test_a_speedup_is_a_ratio_of_total_times_and_a_spread_is_over_prompts() -> None:
    samples = [
        sample("plain", 0, "chat", 1.0),
        sample("plain", 1, "code", 3.0),
        sample("auto", 0, "chat", 0.5),
        sample("auto", 1, "code", 2.0),
    ]
    rows = {(row.category, row.contestant): row for row in summarise(samples, ["plain", "auto"])}
    assert list(rows)[-2:] == [("all", "plain"), ("all", "auto")]
    row = rows["all", "auto"]
    assert row.speedup == pytest.approx(4.0 / 2.5)
    assert row.speedup_with_prompt == pytest.approx(6.0 / 4.5)
    assert row.tokens_per_second == pytest.approx(20 / 2.5)
    assert row.spread == Spread(12.5, 5.0, 20.0)
    assert (row.n_prompts, row.n_tokens, row.seconds) == (2, 22, 2.5)
    assert rows["code", "auto"].speedup == pytest.approx(1.5)
    assert rows["all", "plain"].speedup == 1.0


def test_the_slowest_category_is_that_of_the_least_speedup_and_not_all_together() -> None:
    seconds = {"plain": (1.0, 1.0, 0.0), "auto": (0.5, 1.25, 0.0), "chain:2": (2.0, 0.5, 0.0)}
    samples = [
        sample(name, i, category, taken)
        for name, times in seconds.items()
        for i, (category, taken) in enumerate(zip(("chat", "code", "word"), times, strict=True))
    ]
    # Answers of one token have nothing to time.
    samples = [s._replace(n_timed=0) if s.category == "word" else s for s in samples]
    found = slowest(summarise(samples, list(seconds)), "plain")
    assert [(row.contestant, row.category, row.speedup) for row in found] == [
        ("auto", "code", pytest.approx(0.8)),
        ("chain:2", "chat", pytest.approx(0.5)),
    ]


def test_acceptance_and_times_are_summed_over_samples() -> None:
    first = {"drafted": 6, "n_accepted_per_round": [3, 0], "drafted_by_depth": [2, 2, 2]}
    second = {"drafted": 3, "n_accepted_per_round": [1, 0], "drafted_by_depth": [2, 1]}
    times = {"draft_seconds": 0.2, "verify_seconds": 0.5, "host_seconds": 0.1}
    samples = [
        sample("auto", 0, "chat", 1.0, **first, **times, peak_memory_bytes=7),
        sample("auto", 1, "chat", 1.0, **second, **times, peak_memory_bytes=5),
    ]
    row = summarise(samples, ["auto"])[-1]
    assert row.acceptance_length == 2.0
    assert row.acceptance_by_depth == [2 / 4, 1 / 3, 1 / 2]
    assert (row.draft_seconds, row.verify_seconds, row.host_seconds) == (0.4, 1.0, 0.2)
    assert (row.peak_memory_bytes, row.n_rounds) == (7, 4)


def test_times_that_one_sample_does_not_know_are_unknown() -> None:
    known, unknown = {"draft_seconds": 0.2}, {"draft_seconds": None}
    samples = [sample("a", 0, "c", 1.0, **known), sample("a", 1, "c", 1.0, **unknown)]
    assert summarise(samples, ["a"])[-1].draft_seconds is None


def test_an_answer_of_one_token_has_no_rate_that_could_be_the_lowest() -> None:
    empty = sample("plain", 1, "chat", 0.0)._replace(tokens=[1], n_timed=0)
    row = summarise([sample("plain", 0, "chat", 2.0), empty], ["plain"])[-1]
    assert row.spread == Spread(5.0, 5.0, 5.0)


def test_n_alpha_is_counted_per_category_and_over_all() -> None:
    probes = [Probe("h", 0.0, "chat", 2, [2, 0]), Probe("h", 0.0, "code", 2, [1])]
    found = {entry.category: entry.values for entry in alphas(probes)}
    assert found == {"chat": [1 / 2, 1.0], "code": [1.0, 0.0], "all": [2 / 3, 1 / 2]}


def test_contestants_take_turns_prompt_by_prompt_in_alternating_order() -> None:
    turns = list(schedule(3, 2, Trial(repeats=2)))
    assert [(t.repeat, t.prompt_id, t.contestant_id) for t in turns] == [
        *[(0, 0, 0), (0, 0, 1), (0, 0, 2)],
        *[(0, 1, 2), (0, 1, 1), (0, 1, 0)],
        *[(1, 0, 2), (1, 0, 1), (1, 0, 0)],
        *[(1, 1, 0), (1, 1, 1), (1, 1, 2)],
    ]


def test_all_contestants_sample_a_prompt_with_one_seed_and_rest_before_it() -> None:
    asked: list[tuple[str, Setting]] = []
    rests: list[float] = []

    def make(name: str) -> Contestant:
        def run(prompt: list[int], setting: Setting) -> Run:
            asked.append((name, setting))
            return Run([1, 2], 1, 0.1, 0.1, {})

        return Contestant(name, run, True)

    trial = Trial(max_tokens=2, temperatures=(0.5,), seed=7, cooldown=3.0)
    prompts = [ask("a", "x"), ask("b", "y")]
    pair = [make("plain"), make("auto")]
    asked_ids = Asked(prompts, lambda _: [1], lambda _: {})
    samples = measure(pair, asked_ids, trial, lambda *_: None, sleep=rests.append)
    assert [(name, s.seed) for name, s in asked] == [
        ("plain", 7),
        ("auto", 7),
        ("auto", 8),
        ("plain", 8),
    ]
    assert rests == [3.0] * 4
    assert [(s.contestant, s.category) for s in samples[2:]] == [("auto", "b"), ("plain", "b")]


def never(*args: Any) -> Verdict:
    raise AssertionError("texts that are equal need no judge")


def test_equal_texts_are_counted_and_need_no_judge() -> None:
    samples = [sample("plain", 0, "c", 1.0), sample("auto", 0, "c", 1.0)]
    assert compare(samples, "plain", {"plain", "auto"}, never) == (1, [])


@pytest.mark.parametrize(("gap", "kind"), [(0.0005, NEAR_TIE), (0.5, BUG)])
def test_the_judge_tells_a_near_tie_from_a_bug(gap: float, kind: str) -> None:
    plain, liar = sample("plain", 0, "c", 1.0), sample("auto", 0, "c", 1.0)
    liar = liar._replace(tokens=[0, 1, 99, *range(3, 11)])
    asked = []

    def judge(plain: Sample, position: int, expected: int, found: int) -> Verdict:
        asked.append((plain.contestant, position, expected, found))
        return Verdict(gap, 0.001)

    result = compare([liar, plain, liar._replace(repeat=1)], "plain", set(), judge)
    assert asked == [("plain", 2, 2, 99)]
    assert result.n_compared == 2
    assert [(d.kind, d.position, d.gap) for d in result.differences] == [(kind, 2, gap)]
    assert len(result.bugs) == (kind == BUG)


def test_a_text_that_ends_early_is_a_bug() -> None:
    short = sample("auto", 0, "c", 1.0)._replace(tokens=list(range(4)))
    result = compare([sample("plain", 0, "c", 1.0), short], "plain", set(), never)
    assert [(d.kind, d.expected, d.found) for d in result.bugs] == [(BUG, 4, None)]


def test_sampled_text_is_compared_only_where_the_draws_are_the_same() -> None:
    plain, stock = (sample(n, 0, "c", 1.0)._replace(temperature=0.8) for n in ("plain", "mlx-lm"))
    stock = stock._replace(tokens=[5] * 11)
    assert compare([plain, stock], "plain", {"plain"}, never) == (0, [])


def test_the_first_difference_may_be_the_end_of_a_text() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1, 2], [1]) == 1


def test_the_greedy_gap_is_the_difference_of_the_logits() -> None:
    logits = mx.array([1.0, 5.0, 4.75, 2.0])
    assert find_gap(logits, SeededSampler(), 3, (1, 2)) == pytest.approx(0.25, rel=2e-3)
    assert find_gap(logits, SeededSampler(), 3, (2, 3)) == pytest.approx(3.0, rel=2e-3)


def test_the_sampled_gap_counts_the_draw_too() -> None:
    """Gumbel-max in NumPy: scores are log-probabilities over the temperature, plus the noise."""
    logits, temperature, position = mx.array([1.0, 2.0, 1.5, 0.5]), 0.7, 11
    noise = mx.random.gumbel((4,), key=mx.array([9, position], dtype=mx.uint32))
    scores = np.array(logits) / temperature + np.array(noise)
    best, second = np.argsort(-scores)[:2].tolist()
    gap = find_gap(logits, SeededSampler(temperature, seed=9), position, (best, second))
    assert gap == pytest.approx(temperature * (scores[best] - scores[second]), rel=5e-3)


def test_tokens_that_no_logit_could_make_equal_are_infinitely_far_apart_and_found_so_soon() -> None:
    assert find_gap(mx.array([0.0, float("nan")]), SeededSampler(), 0, (0, 1)) > 1000


def test_narrower_types_have_wider_tolerances() -> None:
    types = (mx.float32, mx.float16, mx.bfloat16)
    assert [tolerance_of(mx.zeros(3, dtype=t)) for t in types] == [0.001, 0.1, 0.5]


def test_specifications_say_what_takes_part() -> None:
    chain = TreeShape.chain(3)
    assert parse_spec("chain:3").shape == chain
    assert parse_spec("tree:4x2x8").shape == TreeShape(4, 2, 8)
    assert parse_spec("head:owner/name@main").source == "owner/name@main"
    assert parse_spec("tree:static:9:head:draft:m")[2:4] == (MeasuredTree(9), "draft:m")
    assert parse_spec("chain:3:head:a/b") == ("chain:3:head:a/b", "chain", chain, "a/b", 0, "match")
    assert not parse_spec("tree:eagle1:head:a").needs_head
    assert parse_spec("ratio:chain:3").rule == "ratio"
    assert parse_spec("draft-model:owner/name")[3:5] == ("owner/name", 2)
    assert parse_spec("draft-model:./a:b:5")[3:5] == ("./a:b", 5)


def test_plain_decoding_always_takes_part_once_and_first() -> None:
    assert [s.name for s in parse_specs(())] == ["plain", "auto"]
    assert [s.name for s in parse_specs(("mlx-lm", "plain", "mlx-lm"))] == ["plain", "mlx-lm"]


@pytest.mark.parametrize(
    "name",
    [
        *["", "fast", "chain", "chain:0", "chain:x", "chain:-1", "chain:300", "auto:3", "head:"],
        *[
            "tree:4x2",
            "tree:1x1x9",
            "draft-model:",
            "draft-model:m:0",
            "chain:3:head:",
            "auto:head:a",
        ],
    ],
)
def test_what_is_no_contestant_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(ValueError, match="is not a contestant.*auto, chain:N, tree:DxWxN, head"):
        parse_spec(name)


def test_c2_after_the_largest_seed_comes_the_smallest() -> None:
    assert [Trial(seed=2**32 - 1).setting(1.0, i).seed for i in (0, 1, 2)] == [2**32 - 1, 0, 1]

"""Statistics: the field's words, with one meaning each."""

from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.decoding.rounds import Round, RoundTimes
from mlx_eagle.decoding.stats import GenerationStats, Planned
from mlx_eagle.planner.policy import HEAD, NGRAM, Forecast, Review
from mlx_eagle.session.responses import count_round
from mlx_eagle.speculation import Speculation
from mlx_eagle.tree import DraftTree


def test_acceptance_length_counts_the_bonus_token() -> None:
    stats = GenerationStats()
    for n_accepted in (2, 0, 1, 3):
        stats.add_round(3, 3, n_accepted)
    assert (stats.rounds, stats.drafted, stats.accepted) == (4, 12, 6)
    assert stats.acceptance_length == 6 / 4 + 1


def test_acceptance_by_depth_is_a_share_of_the_rounds_that_drafted_that_deep() -> None:
    stats = GenerationStats()
    stats.add_round(1, 1, 1)
    stats.add_round(3, 3, 2)
    stats.add_round(3, 3, 0)
    stats.add_round(0, 0, 0)
    assert stats.drafted_by_depth == [3, 2, 2]
    assert stats.acceptance_by_depth == [2 / 3, 1 / 2, 0.0]


def test_tokens_are_counted_by_what_proposed_them() -> None:
    stats = GenerationStats()
    stats.add_sources(["n-gram", "n-gram", "head"], [0, 1, 3])
    stats.add_sources(["head", "head"], [0])
    stats.add_sources([], [0])
    assert stats.by_source == {"n-gram": (2, 1), "head": (3, 1)}


def test_before_the_first_round_there_is_no_acceptance_length() -> None:
    assert GenerationStats().acceptance_length == 0.0
    assert GenerationStats().acceptance_by_depth == []


def test_rates_leave_out_what_was_cached_and_the_token_that_came_with_the_prompt() -> None:
    stats = GenerationStats(prompt_tokens=100, cached_tokens=60, prompt_seconds=2.0)
    stats.generation_tokens, stats.generation_seconds = 11, 5.0
    assert stats.prompt_tps == 20.0
    assert stats.generation_tps == 2.0


def test_times_that_were_not_told_apart_stay_unknown() -> None:
    stats = GenerationStats()
    stats.add_times(0.1, 0.4, 0.02)
    stats.add_times(None, None, 0.03)
    assert stats.draft_seconds is None
    assert stats.verify_seconds is None
    assert stats.host_seconds == pytest.approx(0.05)


def test_the_json_form_has_every_field_and_derived_figure() -> None:
    values = GenerationStats(status=Speculation.off("not asked for")).to_dict()
    counts = ["prompt_tokens", "generation_tokens", "rounds", "drafted", "accepted"]
    times = ["prompt_seconds", "generation_seconds", "draft_seconds", "verify_seconds"]
    rest = ["acceptance_length", "acceptance_by_depth", "n_accepted_per_round", "host_seconds"]
    assert {*counts, *times, *rest, "peak_memory_bytes", "speculation"} <= set(values)


def test_a_head_that_is_never_right_is_reported_once_after_50_rounds() -> None:
    watch = HeadWatch("mlx-eagle doctor h --target t")
    bad = GenerationStats()
    for _ in range(30):
        bad.add_first(HEAD, is_right=False)
        bad.add_first(NGRAM, is_right=True)
    assert watch.advise(bad) == ""
    assert "right in only 0% of 60 rounds" in watch.advise(bad)
    assert watch.advise(bad) == ""


def test_a_head_is_judged_by_what_it_drafted_also_where_that_was_not_verified() -> None:
    forecast = Forecast(1.0, 0.1, 0.1, n_rows=1, depth=1)
    root, choices = DraftTree.chain(mx.array([5])), Any
    plain = Round([7], root, [0], 0, choices, RoundTimes(0, 0, 0, 0, 0))
    for share, expected in ((0.0, True), (0.5, False)):
        stats = GenerationStats(planned=Planned("", plain_seconds=1.0))
        for index in range(60):
            count_round(stats, plain)
            count_round(stats, plain._replace(review=Review(forecast, index < 60 * share)))
        assert bool(HeadWatch("").advise(stats)) is expected


def test_a_head_that_helps_and_plain_decoding_are_not_reported() -> None:
    good, plain = GenerationStats(), GenerationStats()
    for _ in range(300):
        good.add_first(HEAD, is_right=True)
        plain.add_round(0, 0, 0)
    for stats in (good, plain):
        assert HeadWatch("").advise(stats) == ""

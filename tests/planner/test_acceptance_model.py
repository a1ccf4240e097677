"""Acceptance by confidence: counted in bins, monotone and forgetful."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.errors import EagleError
from mlx_eagle.planner.acceptance_model import EDGES, PRIOR, Acceptance, Bins

CONFIDENCE = st.floats(0.0, 1.0)
SEEN = st.lists(st.tuples(CONFIDENCE, st.booleans()), max_size=200)
GRID = [0.0, *EDGES, 1.0]
LEVELS = st.lists(
    st.tuples(
        st.lists(CONFIDENCE, min_size=1, max_size=4).map(lambda c: sorted(c, reverse=True)),
        st.none() | st.integers(0, 3),
    ),
    max_size=60,
)


def test_unseen_bins_hold_what_is_taken_for_granted() -> None:
    bins = Bins()
    assert [bins[c] for c in (0.0, 0.5, 0.97)] == pytest.approx([PRIOR[0], PRIOR[6], PRIOR[-1]])


def test_an_edge_belongs_to_the_bin_above_it() -> None:
    assert Bins()[EDGES[3]] == pytest.approx(PRIOR[4])


def test_a_bin_learns_what_is_counted() -> None:
    bins = Bins()
    for i in range(100):
        bins.observe(0.5, i % 4 == 0)
    assert bins[0.5] == pytest.approx(0.25, abs=0.05)


def test_bins_that_fall_are_pooled_by_what_was_counted() -> None:
    bins = Bins()
    for _ in range(8):
        bins.observe(0.85, True)
        bins.observe(0.92, False)
    # Both bins pooled, with what they were taken for before: half as much, as half was accepted.
    trust = (8 + 1) / (8 * (PRIOR[9] + PRIOR[10]) + 1)
    promised = Bins.PRIOR_WEIGHT * trust * (PRIOR[9] + PRIOR[10])
    pooled = (8 + promised) / (16 + 2 * Bins.PRIOR_WEIGHT)
    assert [bins[c] for c in (0.85, 0.92)] == pytest.approx([pooled] * 2)
    assert bins[0.5] < pooled < bins[0.97]


def test_a_head_that_fails_at_some_confidences_is_not_trusted_at_the_others() -> None:
    bins = Bins()
    for _ in range(3):
        bins.observe(0.92, False)
    assert bins[0.6] < 0.6 * Bins()[0.6]


def test_a_head_that_is_better_than_it_says_is_trusted_at_other_confidences_too() -> None:
    bins = Bins()
    for _ in range(10):
        bins.observe(0.4, True)
    assert Bins()[0.92] < bins[0.92] <= Bins.SUREST
    assert bins[0.6] > Bins()[0.6]


@given(SEEN)
def test_rates_never_fall_whatever_was_observed(seen: list[tuple[float, bool]]) -> None:
    bins = Bins()
    for confidence, accepted in seen:
        bins.observe(confidence, accepted)
    rates = [bins[c] for c in GRID]
    assert all(low <= high + 1e-12 for low, high in pairwise(rates))
    assert all(0 < rate < 1 for rate in rates)


def naive_monotone(values: list[float], weights: list[float]) -> list[float]:
    """Isotonic regression by its min-max formula."""
    n = len(values)
    mean = [[0.0] * (n + 1) for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n + 1):
            mean[i][j] = float(np.average(values[i:j], weights=weights[i:j]))
    return [
        max(min(mean[i][j] for j in range(k + 1, n + 1)) for i in range(k + 1)) for k in range(n)
    ]


@given(SEEN)
def test_pooling_is_isotonic_regression(seen: list[tuple[float, bool]]) -> None:
    bins = Bins()
    for confidence, accepted in seen:
        bins.observe(confidence, accepted)
    priors = [Bins.PRIOR_WEIGHT if n else Bins.UNSEEN_WEIGHT for n in bins.seen]
    weights = [n + prior for n, prior in zip(bins.seen, priors, strict=True)]
    trust = min(
        (sum(bins.accepted) + Bins.TRUST_WEIGHT)
        / (float(np.dot(bins.seen, PRIOR)) + Bins.TRUST_WEIGHT),
        Bins.MOST_TRUST,
    )
    values = [
        (accepted + prior * min(trust * promised, Bins.SUREST)) / weight
        for accepted, prior, promised, weight in zip(
            bins.accepted, priors, PRIOR, weights, strict=True
        )
    ]
    assert [bins[c] for c in GRID[:-1]] == pytest.approx(naive_monotone(values, weights))


@given(CONFIDENCE)
def test_old_observations_fade_so_that_a_change_is_learnt(confidence: float) -> None:
    bins = Bins()
    for _ in range(1000):
        bins.observe(confidence, True)
    for _ in range(60):
        bins.observe(confidence, False)
    assert bins[confidence] < 0.2
    assert max(bins.seen) <= Bins.MEMORY + 1


def test_siblings_are_counted_apart_from_likeliest_children() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.observe([0.5, 0.5], 0)
    likeliest, sibling = acceptance.children([0.5, 0.5])
    assert likeliest > 0.8
    assert sibling < 0.2


@given(LEVELS, st.lists(CONFIDENCE, min_size=1, max_size=4))
def test_acceptance_is_a_probability_that_is_never_certain(
    levels: list[tuple[list[float], int | None]], confidences: list[float]
) -> None:
    acceptance = Acceptance()
    for level, chosen in levels:
        acceptance.observe(level, chosen)
    rates = acceptance.children(confidences)
    assert len(rates) == len(confidences)
    assert all(0 < rate < 1 for rate in rates)


@given(LEVELS)
def test_what_is_stored_comes_back_and_weighs_little(
    levels: list[tuple[list[float], int | None]],
) -> None:
    acceptance = Acceptance()
    for level, chosen in levels:
        acceptance.observe(level, chosen)
    stored = Acceptance.from_dict(acceptance.to_dict())
    for before, after in (
        (acceptance.first, stored.first),
        (acceptance.sibling, stored.sibling),
    ):
        assert max(after.seen) <= Acceptance.STORED + 1e-9
        for at in range(len(PRIOR)):
            if before.seen[at] > 0:
                share = before.accepted[at] / before.seen[at]
                assert after.accepted[at] == pytest.approx(share * after.seen[at])


def test_a_stored_bin_counts_for_little_and_keeps_its_rate() -> None:
    acceptance = Acceptance()
    for at in range(40):
        acceptance.observe([0.5], 0 if at % 2 else None)
    stored = Acceptance.from_dict(acceptance.to_dict())
    assert max(acceptance.first.seen) > 2 * Acceptance.STORED - 1
    assert max(stored.first.seen) == pytest.approx(Acceptance.STORED)
    assert stored.first[0.5] == pytest.approx(0.5, abs=0.02)


@given(LEVELS)
def test_storing_twice_changes_nothing(levels: list[tuple[list[float], int | None]]) -> None:
    acceptance = Acceptance()
    for level, chosen in levels:
        acceptance.observe(level, chosen)
    once = Acceptance.from_dict(acceptance.to_dict()).to_dict()
    again = Acceptance.from_dict(once).to_dict()
    for kind in once:
        for column in ("accepted", "seen"):
            assert again[kind][column] == pytest.approx(once[kind][column])


GOOD = [1.0] * len(PRIOR)
WHOLE = {"accepted": GOOD, "seen": GOOD}


def damaged(**columns: Any) -> dict[str, Any]:
    """Return counts whose first kind is off in these columns."""
    return {"first": WHOLE | columns, "sibling": WHOLE}


DAMAGES: dict[str, Any] = {
    "empty": {},
    "one kind only": {"first": WHOLE},
    "no counts": {"first": {}, "sibling": {}},
    "a bin too few": damaged(accepted=GOOD[1:], seen=GOOD[1:]),
    "columns of two lengths": damaged(accepted=GOOD[1:]),
    "more accepted than seen": damaged(accepted=[2.0] * len(PRIOR)),
    "negative": damaged(accepted=[-1.0] * len(PRIOR)),
    "infinite": damaged(seen=[math.inf] * len(PRIOR)),
    "not a number": damaged(accepted=[math.nan] * len(PRIOR)),
    "words": damaged(accepted=["many"] * len(PRIOR)),
    "not a list": damaged(accepted=3),
    "not a mapping": {"first": [GOOD, GOOD], "sibling": WHOLE},
}


def test_undamaged_counts_are_read() -> None:
    assert Acceptance.from_dict(damaged()).to_dict() == damaged()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_counts_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(EagleError, match="counts of acceptance"):
        Acceptance.from_dict(damage)


@pytest.mark.parametrize("fields", [None, [], "counts", 3], ids=repr)
def test_what_is_no_mapping_is_refused(fields: Any) -> None:
    with pytest.raises(EagleError, match="counts of acceptance"):
        Acceptance.from_dict(fields)

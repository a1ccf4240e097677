"""The index of a text: the matches that comparing everything finds, whatever was forgotten."""

import random
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.drafters.ngram_index import LONGEST, MOST_KEPT, MOST_TRIED, ORDER, Match, NgramIndex

texts = st.lists(st.integers(0, 3), max_size=40)


def index_of(text: Sequence[int]) -> NgramIndex:
    index = NgramIndex()
    index.extend(text)
    return index


def matches_naively(text: Sequence[int]) -> list[Match]:
    """Every earlier position, compared token by token."""
    found = []
    for end in range(len(text) - 1):
        n = 0
        while n <= end and n < LONGEST and text[end - n] == text[len(text) - 1 - n]:
            n += 1
        if n >= ORDER:
            found.append(Match(end, n))
    newest = sorted(found, key=lambda match: -match.end)[:MOST_TRIED]
    return sorted(newest, key=lambda match: (-match.length, -match.end))[:MOST_KEPT]


@given(texts)
def test_what_is_found_is_what_comparing_everything_finds(text: list[int]) -> None:
    assert index_of(text).matches() == matches_naively(text)


@given(st.lists(st.one_of(texts, st.integers(0, 40)), max_size=6))
def test_after_any_editing_the_index_is_that_of_the_text_that_is_left(
    steps: list[list[int] | int],
) -> None:
    """A list is added, a number is a length to go back to; lookups in between change nothing."""
    index, text = NgramIndex(), list[int]()
    for step in steps:
        if isinstance(step, int):
            index.trim(step)
            text = text[:step]
        else:
            index.extend(step)
            text += step
        index.matches()
        assert list(index.tokens) == text
    fresh = index_of(text)
    assert index.matches() == fresh.matches()
    assert index.nbytes == fresh.nbytes


def test_a_fork_goes_its_own_way() -> None:
    index = index_of([5, 6, 7, 5, 6])
    index.matches()
    twin = index.fork()
    twin.trim(3)
    twin.extend([8, 5, 6])
    assert [twin.following(m, 0) for m in twin.matches()] == [7]
    index.extend([9, 5, 6])
    assert [index.following(m, 0) for m in index.matches()] == [9, 7]


def test_a_long_copy_is_followed_where_newer_places_begin_alike() -> None:
    """Records with equal keys: the newest hundred of them hide the one that is being copied."""
    records = [[1, 2, 100 + n, 3, 4, 200 + n, 5] for n in range(100)]
    index = index_of([token for record in records for token in record])
    index.extend(records[7][:3])  # its value occurs nowhere else
    index.matches()
    for token in [*records[7][3:], *records[8]]:
        assert index.following(index.matches()[0], 0) == token
        index.extend([token])


def test_a_copy_that_reaches_the_end_goes_on_with_its_period() -> None:
    index = index_of([7, 8, 9, 8, 9])
    match = index.matches()[0]
    assert [index.following(match, distance) for distance in range(5)] == [8, 9, 8, 9, 8]


@pytest.mark.parametrize("n", [ORDER, 5000])
def test_bytes_are_those_of_the_arrays(n: int) -> None:
    index = index_of([random.Random(n).randrange(1 << 30) for _ in range(n)])
    arrays = index._tokens, index._before, index._newest
    held = sum(sys.getsizeof(array[:]) - sys.getsizeof(array[:0]) for array in arrays)
    assert index.nbytes == held
    assert index.nbytes < 25 * n + 5000


class Counting(NgramIndex):
    """Counts what grows with the number of tokens, if anything does."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = self.compared = 0

    def _add(self, position: int) -> None:
        self.entered += 1
        super()._add(position)

    def _agreement(self, position: int) -> int:
        self.compared += 1
        return super()._agreement(position)


@pytest.mark.parametrize("n_words", [1 << 15, 2])
def test_a_token_costs_as_much_in_a_long_text_as_in_a_short_one(n_words: int) -> None:
    """Where nothing is found, and where the same two tokens stand everywhere."""
    rng, index = random.Random(3), Counting()
    for length in (500, 20_000):
        index.extend(rng.randrange(n_words) for _ in range(length - len(index)))
        assert index.entered <= 1.4 * length, "few are entered again as the text grows"
        index.compared = 0
        for _ in range(200):
            index.extend([rng.randrange(n_words)])
            index.matches()
        assert index.compared <= 200 * (MOST_TRIED if n_words == 2 else 4)

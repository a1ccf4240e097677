"""A layer with a window goes back exactly as far as it holds what is seen from there."""

from collections.abc import Iterator

import pytest

from mlx_eagle.cache.window import WindowKVCache
from serial_rows import rows, serials

WINDOW = 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows move to the front as often as can be."""
    monkeypatch.setattr(WindowKVCache, "slack", 5)
    monkeypatch.setattr(WindowKVCache, "margin", 3)


def grown(n: int) -> Iterator[WindowKVCache]:
    """A cache to which rows 0, 1, 2, ... are given one by one, after each of them."""
    cache = WindowKVCache(WINDOW)
    for row in range(n):
        cache.update_and_fetch(rows(row, 1), rows(row, 1))
        cache.commit([0])
        yield cache


def check_seen(cache: WindowKVCache) -> None:
    """The next row sees the newest rows of the window, whatever has been dropped or moved."""
    keys, values = cache.update_and_fetch(rows(500, 1), rows(500, 1))
    n = cache.rows
    assert serials(keys) == serials(values) == [*range(max(0, n - WINDOW + 1), n), 500]


def test_wherever_it_can_go_back_to_it_shows_what_is_seen_from_there() -> None:
    for cache in grown(40):
        for n in range(cache.rows + 1):
            if cache.can_trim(n):
                twin = cache.fork()
                twin.trim(n)
                check_seen(twin)


def test_the_rows_of_the_margin_can_be_gone_back_over_at_any_time() -> None:
    for cache in grown(40):
        twin = cache.fork()
        twin.update_and_fetch(rows(500, 1), rows(500, 1))  # which may move the others
        assert twin.can_trim(max(0, cache.rows - twin.margin))


def test_a_restored_cache_goes_on_where_the_other_one_was() -> None:
    for cache in grown(40):
        twin = WindowKVCache(WINDOW)
        twin.restore(cache.arrays(), cache.rows)
        check_seen(twin)


def test_accepted_rows_with_a_gap_between_them_follow_those_that_are_held() -> None:
    for cache in grown(40):
        twin = cache.fork()
        twin.update_and_fetch(rows(100, 4), rows(100, 4))
        twin.commit([0, 2, 3])
        keys, _ = twin.update_and_fetch(rows(500, 1), rows(500, 1))
        assert serials(keys) == [100, 102, 103, 500]

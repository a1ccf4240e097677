"""Caches against lists: what is committed stays, what is not leaves no trace."""

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.stock import StockCache
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.tree import DraftTree

# (rows of a round, which of them are accepted)
Rounds = list[tuple[int, list[int]]]


@st.composite
def rounds(draw: st.DrawFn) -> Rounds:
    """Prefill chunks, which are kept whole, and trees, of which a path is kept."""
    out: Rounds = []
    for _ in range(draw(st.integers(1, 12))):
        if draw(st.booleans()):
            n = draw(st.integers(1, 700))
            out.append((n, list(range(n))))
        else:
            n = draw(st.integers(1, 9))
            later = draw(st.sets(st.integers(1, n - 1))) if n > 1 else set()
            out.append((n, [0, *sorted(later)]))
    return out


def rows(first: int, n: int) -> mx.array:
    """Rows that carry their own serial number: [1, 2, n, 4]."""
    serial = mx.arange(first, first + n, dtype=mx.float32)[None, None, :, None]
    return mx.broadcast_to(serial, (1, 2, n, 4))


def serials(fetched: mx.array) -> list[int]:
    return [int(x) for x in np.array(fetched)[0, 1, :, 3]]


@given(rounds())
def test_the_cache_holds_what_was_committed_and_shows_what_is_pending(plan: Rounds) -> None:
    cache, kept, made = KVCache(), [], 0
    for n, path in plan:
        keys, values = cache.update_and_fetch(rows(made, n), rows(made, n) + 0.5)
        new = list(range(made, made + n))
        assert serials(keys) == serials(values) == kept + new
        cache.commit(path)
        kept, made = kept + [new[i] for i in path], made + n
        assert cache.rows == cache.offset == len(kept)
        assert serials(cache.keys[..., : cache.rows, :]) == kept


@given(rounds(), st.sampled_from([1, 5, 40, 300]))
def test_a_window_cache_shows_exactly_the_window_and_holds_no_history(
    plan: Rounds, window: int
) -> None:
    cache, kept, made = WindowKVCache(window), [], 0
    for n, path in plan:
        keys, values = cache.update_and_fetch(rows(made, n), rows(made, n) + 0.5)
        new = list(range(made, made + n))
        visible = kept[max(0, len(kept) - window + 1) :]
        assert serials(keys) == serials(values) == visible + new
        cache.commit(path)
        kept, made = kept + [new[i] for i in path], made + n
        assert cache.rows == cache.offset == len(kept)
        most = window + cache.margin + cache.slack
        assert cache.keys.shape[2] <= most + cache.step


def test_a_tree_mask_shows_prefix_and_ancestors_as_a_literal() -> None:
    cache = TreeCache([KVCache(), WindowKVCache(2)])
    for layer in cache.layers:
        layer.update_and_fetch(rows(0, 3), rows(0, 3))
    cache.commit([0, 1, 2])
    cache.open(DraftTree.static(mx.array([7, 8, 5, 9]), [0, 0, 0, 1]))
    assert cache.layers[0].offset.tolist() == [3, 4, 4, 5]
    assert cache.layers[0].make_mask(4).astype(mx.int32).tolist() == [
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 0, 1],
    ]
    # A window of two positions: the root at 3 sees position 2, its children at 4 see the root.
    assert cache.layers[1].make_mask(4).astype(mx.int32).tolist() == [
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 1, 0, 1],
    ]


def test_a_window_asked_of_a_full_cache_hides_old_rows() -> None:
    cache = TreeCache([KVCache()])
    cache.layers[0].update_and_fetch(rows(0, 3), rows(0, 3))
    cache.commit([0, 1, 2])
    cache.open(DraftTree.static(mx.array([7, 8, 5]), [0, 0, 0]))
    assert cache.layers[0].make_mask(3, window_size=3).astype(mx.int32).tolist() == [
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 0, 1],
    ]


def test_rejected_rows_leave_no_trace_in_the_next_round() -> None:
    cache = KVCache()
    cache.update_and_fetch(rows(0, 5), rows(0, 5))
    cache.commit([0, 3])
    keys, _ = cache.update_and_fetch(rows(10, 1), rows(10, 1))
    assert serials(keys) == [0, 3, 10]


def test_trimming_goes_back_and_a_window_says_when_it_cannot() -> None:
    full, window = KVCache(), WindowKVCache(4)
    for cache in (full, window):
        cache.update_and_fetch(rows(0, 1000), rows(0, 1000))
        cache.commit(range(1000))
    assert full.can_trim(1)
    assert not full.can_trim(1001)
    assert window.can_trim(1000 - window.margin)
    assert not window.can_trim(500)
    window.trim(950)
    keys, _ = window.update_and_fetch(rows(5000, 1), rows(5000, 1))
    assert serials(keys) == [947, 948, 949, 5000]


def test_nbytes_counts_every_buffer() -> None:
    cache = TreeCache([KVCache(), KVCache()])
    assert cache.nbytes == 0
    for layer in cache.layers:
        layer.update_and_fetch(rows(0, 3), rows(0, 3))
    assert cache.nbytes == 2 * 2 * (2 * 256 * 4) * 4  # layers, k and v, elements, bytes


def test_stock_caches_never_offer_to_step_back() -> None:
    cache = StockCache([])
    cache.commit([0])
    assert cache.rows == 1
    assert not cache.can_trim(0)

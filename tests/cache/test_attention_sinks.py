"""Layers with sinks against lists of rows, and against attention computed from scratch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.rope_utils import initialize_rope

from cases import examples, narrowed
from mlx_eagle.cache.attention_sinks import MovingSinkKVCache, SinkKVCache
from mlx_eagle.cache.kv import OpenRows
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import Attention
from mlx_eagle.target.positions import accept_node_positions

ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "interleaved": {"rope_interleaved": True},
    "half of the head": {"rope_dims": 4},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn, half of the head": {
        "rope_dims": 4,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "truncate": False,
        },
    },
}


def shift(x: mx.array, offset: Any = 0) -> mx.array:
    """A rope that can be read: it adds the position to the first number, and doubles the second.

    A row at position 7 that was rotated once has 7 and 2 there, however it came to stand at 7.
    """
    assert x.shape[-1] == 4
    x = x * mx.array([1.0, 2.0, 1.0, 1.0])
    return x + mx.array([1.0, 0, 0, 0]) * mx.broadcast_to(mx.array(offset), (x.shape[2],))[:, None]


def made(serials: Sequence[int], places: Sequence[int]) -> tuple[mx.array, mx.array]:
    """Keys and values [1, 2, n, 4] of rows that stand at these places, rotated by `shift`."""
    numbers = [[at, 2.0, serial, 1.0] for at, serial in zip(places, serials, strict=True)]
    keys = mx.broadcast_to(mx.array(numbers), (1, 2, len(serials), 4))
    return keys, keys + 0.5


def read(keys: mx.array, column: int) -> list[int]:
    return [int(x) for x in np.array(keys)[0, 1, :, column]]


def seen_by(mask: Any, n: int, total: int) -> np.ndarray:
    """What a mask of any form lets n new rows see of `total` rows: [n, total] bool."""
    if mask is None:
        return np.ones((n, total), dtype=bool)
    if isinstance(mask, str):
        assert mask == "causal"
        return np.tri(n, total, total - n, dtype=bool)
    assert mask.shape == (n, total)
    return np.array(mask)


class Model:
    """The rows that were kept, as (serial, position) in a list, beside a cache to be checked."""

    def __init__(self, cache: SinkKVCache, kept: list[int]) -> None:
        self.cache, self.kept = cache, kept

    def sees(self, position: int, other: int) -> bool:
        """Say whether a query may see a row at another position, which comes before it."""
        return other < self.cache.sinks or position - other < self.cache.window

    def shown(self, position: int) -> list[int]:
        """Committed positions that a query at `position` is to see."""
        return [q for q in range(len(self.kept)) if self.sees(position, q)]

    def check_layout(self) -> None:
        """The sinks, then the newest rows, in the order of the text; all that is needed is held."""
        cache, rows = self.cache, len(self.kept)
        assert (cache.rows, cache.pending) == (rows, 0)
        places = [*range(min(cache.sinks, rows)), *range(cache.first, rows)]
        if cache.keys is not None:
            assert read(cache.keys[:, :, : cache.held], 2) == [self.kept[q] for q in places]
            assert read(cache.values[:, :, : cache.held], 2) == [self.kept[q] for q in places]
        assert set(self.shown(rows)) <= set(places)
        assert cache.held <= cache.sinks + cache.window + cache.margin + cache.slack
        self.check_ways_back(set(places))

    def check_ways_back(self, held: set[int]) -> None:
        """A place can be gone back to if what is seen from there is held."""
        for rows in range(self.cache.first, len(self.kept) + 1):
            assert self.cache.can_trim(rows) == (set(self.shown(rows)) & set(range(rows)) <= held)
        assert not self.cache.can_trim(len(self.kept) + 1)

    def append(self, new: list[int], tree: bool, path: list[int]) -> None:
        """New rows in sequence, or in two branches that take turns."""
        n, rows, cache = len(new), len(self.kept), self.cache
        at = [rows + (i // 2 if tree else i) for i in range(n)]
        own = np.tri(n, dtype=bool)
        if tree:
            own &= (np.arange(n)[:, None] - np.arange(n)) % 2 == 0
            cache.open_rows = OpenRows(mx.array(at), mx.array(at), mx.array(own))
        mask = cache.make_mask(n)
        keys, values = cache.update_and_fetch(*made(new, at))
        found = seen_by(mask, n, keys.shape[2])
        for i in range(n):
            want = [self.kept[q] for q in self.shown(at[i])]
            want += [new[j] for j in range(n) if own[i, j] and self.sees(at[i], at[j])]
            columns = np.flatnonzero(found[i])
            assert [read(keys, 2)[c] for c in columns] == want
            assert [read(values, 2)[c] for c in columns] == want
        cache.commit(path)
        self.kept = self.kept + [new[i] for i in path]


class MovingModel(Model):
    """As `Model`, for sinks that move along: all that is held is seen."""

    def sees(self, position: int, other: int) -> bool:
        """Say yes to all that is held."""
        return other < self.cache.sinks or other >= self.cache.first

    def check_ways_back(self, held: set[int]) -> None:
        """Any place can be gone back to."""
        assert self.cache.can_trim(0) and self.cache.can_trim(len(self.kept))
        assert not self.cache.can_trim(len(self.kept) + 1)

    def check_layout(self) -> None:
        """The sinks besides stand right before the window, rotated there from where they were."""
        super().check_layout()
        cache = self.cache
        if cache.keys is not None and cache.values is not None:
            n, keys = min(cache.sinks, cache.rows), cache.keys[:, :, : cache.held]
            assert read(keys, 0)[:n] == list(range(cache.dropped, cache.dropped + n))
            assert set(read(keys, 1)) <= {2}, "scaled more or less than once"
            assert read(cache.values, 0)[:n] == list(range(n))


def check_script(data: st.DataObject, model: Model) -> None:
    """Prefills, trees, trims, copies and reopened files, in any order."""
    models, serial = [model], 0
    for _ in range(data.draw(st.integers(1, 14))):
        model = data.draw(st.sampled_from(models))
        action = data.draw(st.sampled_from(["prefill", "tree", "tree", "trim", "fork", "reopen"]))
        rows = len(model.kept)
        if action == "fork":
            models.append(type(model)(model.cache.fork(), model.kept))
        elif action == "reopen":
            twin = model.cache.fork()
            twin.restore(model.cache.arrays(), rows)
            models.append(type(model)(twin, model.kept))
        elif action == "trim":
            near = [model.cache.first + off for off in (-1, 0, 1)]
            places = st.one_of(st.integers(0, rows), st.sampled_from(near))
            to = min(max(0, data.draw(places)), rows)
            if model.cache.can_trim(to):
                model.cache.trim(to)
                model.kept = model.kept[:to]
        else:
            n = data.draw(st.integers(1, 50 if action == "prefill" else 9))
            new, serial = list(range(serial, serial + n)), serial + n
            is_tree, path = action == "tree", list(range(n))
            if is_tree:
                sides = data.draw(st.lists(st.integers(0, 1), max_size=n // 2))
                path = [2 * depth + side for depth, side in enumerate(sides)]
            model.append(new, is_tree, path)
        for each in models:
            each.check_layout()


@given(st.data(), st.sampled_from([0, 1, 4]), st.sampled_from([1, 5, 20]), st.integers(1, 9))
def test_every_query_sees_the_sinks_and_its_window_whatever_came_before(
    data: st.DataObject, sinks: int, window: int, slack: int
) -> None:
    cache = SinkKVCache(sinks, window)
    cache.slack, cache.margin = slack, 3
    check_script(data, Model(cache, []))


@examples(0.5)
@given(st.data(), st.sampled_from([0, 1, 4]), st.sampled_from([16, 17, 40]))
def test_moving_sinks_stand_right_before_the_window_whatever_came_before(
    data: st.DataObject, sinks: int, reach: int
) -> None:
    check_script(data, MovingModel(MovingSinkKVCache(shift, reach, sinks), []))


def test_the_worked_example() -> None:
    for cache, places in (
        (SinkKVCache(2, 3), [0, 1, 5, 6, 7]),
        (MovingSinkKVCache(shift, 16, 2), [3, 4, 5, 6, 7]),
    ):
        cache.window, cache.slack, cache.margin = 3, 1, 0
        cache.update_and_fetch(*made(range(8), range(8)))
        cache.commit(range(8))
        assert (cache.first, cache.held) == (5, 5)
        assert read(cache.keys[:, :, :5], 0) == places
        assert read(cache.keys[:, :, :5], 2) == [0, 1, 5, 6, 7]


def test_a_tree_mask_as_a_literal() -> None:
    """Rows 0 and 1 are sinks; of rows 5, 6 and 7 a query sees those at most two before it."""
    cache = SinkKVCache(2, 3)
    cache.slack, cache.margin = 1, 0
    cache.update_and_fetch(*made(range(8), range(8)))
    cache.commit(range(8))
    positions = mx.array([8, 9, 9, 10])
    seen = mx.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).astype(mx.bool_)
    cache.open_rows = OpenRows(positions, positions, seen)
    assert cache.make_mask(4).astype(mx.int32).tolist() == [
        [1, 1, 0, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 0, 1],
    ]
    assert cache.make_mask(4, window_size=2).astype(mx.int32).tolist() == [
        [0, 0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 1],
    ]


def test_a_target_can_step_back_a_little_and_says_when_it_cannot() -> None:
    cache = SinkKVCache(4, 60)
    for start in range(0, 1000, 100):
        cache.update_and_fetch(*made(range(start, start + 100), range(start, start + 100)))
        cache.commit(range(100))
    assert cache.can_trim(1000 - cache.margin)
    assert not cache.can_trim(500)
    assert not cache.can_trim(3)
    with pytest.raises(AssertionError, match="cannot trim 1000 rows to 500"):
        cache.trim(500)
    assert cache.nbytes <= 2 * 2 * 16 * (4 + 60 + 64 + 256 + cache.step)


def test_a_long_prefill_does_not_leave_large_buffers() -> None:
    cache = SinkKVCache(4, 60)
    cache.update_and_fetch(*made(range(5000), range(5000)))
    cache.commit(range(5000))
    assert cache.keys.shape[2] <= 4 + 60 + 64 + 256 + cache.step


def rope_of(kind: str) -> nn.Module:
    facts = {"rope_dims": 8, "rope_interleaved": False, "rope_scaling": None} | ROPES[kind]
    return initialize_rope(
        facts["rope_dims"], 10000.0, facts["rope_interleaved"], facts["rope_scaling"], 512
    )


@pytest.mark.parametrize("kind", ROPES)
def test_distances_are_all_that_matters_far_beyond_the_trained_positions(kind: str) -> None:
    """No rope of a head has a table that ends."""
    rope = rope_of(kind)
    mx.random.seed(1)
    query, key = mx.random.normal((2, 1, 1, 1, 8))
    near, far = ((rope(query, offset=at + 100) * rope(key, offset=at)).sum() for at in (0, 20_000))
    assert mx.allclose(near, far, atol=3e-2)
    assert not mx.allclose(near, (rope(query, offset=0) * rope(key, offset=0)).sum(), atol=3e-2)


@pytest.mark.parametrize("kind", ROPES)
def test_moved_sinks_have_the_keys_of_their_new_positions(kind: str) -> None:
    rope = rope_of(kind)
    accept_node_positions(rope)
    cache = MovingSinkKVCache(rope, 32)
    mx.random.seed(2)
    plain, values = mx.random.normal((2, 1, 2, 300, 8))
    for start in range(0, 300, 10):
        rows = slice(start, start + 10)
        cache.update_and_fetch(rope(plain[:, :, rows], offset=start), values[:, :, rows])
        cache.commit(range(10))
    assert cache.dropped > 200
    want = rope(plain[:, :, :4], offset=cache.dropped)
    np.testing.assert_allclose(np.array(cache.keys[:, :, :4]), np.array(want), atol=2e-4)
    cache.trim(7)  # long gone: the sinks stand before it again
    want = rope(plain[:, :, :4], offset=3)
    np.testing.assert_allclose(np.array(cache.keys[:, :, :4]), np.array(want), atol=1e-5)
    cache.trim(2)
    want = rope(plain[:, :, :2], offset=0)
    np.testing.assert_allclose(np.array(cache.keys[:, :, :2]), np.array(want), atol=1e-5)
    assert mx.array_equal(cache.values[:, :, :4], values[:, :, :4])


def attend(layer: Attention, x: np.ndarray, row: int, places: list[int], at: list[int]) -> Any:
    """Attention of one row to the rows `places`, of which each stands `at` a position: by hand."""
    rows = mx.array(x)[None]

    def heads(projected: mx.array, n_heads: int) -> mx.array:
        return projected.reshape(1, -1, n_heads, 8).transpose(0, 2, 1, 3)

    query = layer.rope(heads(layer.q_proj(rows[:, row : row + 1]), 4), offset=row)
    keys = heads(layer.k_proj(rows[:, places]), 2)
    keys = mx.concatenate(
        [layer.rope(keys[:, :, i : i + 1], offset=p) for i, p in enumerate(at)], axis=2
    )
    values = np.repeat(np.array(heads(layer.v_proj(rows[:, places]), 2)), 2, axis=1)[0]
    scores = np.array(query)[0] @ np.repeat(np.array(keys), 2, axis=1)[0].transpose(0, 2, 1)
    weights = np.exp(scores * layer.scale)
    out = (weights / weights.sum(axis=-1, keepdims=True)) @ values  # [4, 1, 8]
    return np.array(layer.o_proj(mx.array(out.transpose(1, 0, 2).reshape(1, 1, 32))))[0, 0]


@pytest.mark.parametrize(
    "kind", narrowed(ROPES, ("plain", "interleaved", "yarn, half of the head"))
)
def test_attention_is_that_over_the_rows_and_positions_that_are_meant(
    kind: str, head_config: HeadConfig, is_quick: bool
) -> None:
    n_rows = 100 if is_quick else 150
    mx.random.seed(6)
    layer = Attention(replace(head_config, **ROPES[kind]), 32, None)
    x = np.random.default_rng(0).standard_normal((n_rows, 32)).astype(np.float32)
    moving, fixed = MovingSinkKVCache(layer.rope, 40), SinkKVCache(4, 24)
    fixed.slack = 5
    for row in range(n_rows):
        dropped = moving.dropped
        n_sinks = min(4, row + 1)
        places = [*range(n_sinks), *range(4 + dropped, row + 1)]
        at = [*range(dropped, dropped + n_sinks), *places[n_sinks:]]
        out = layer(mx.array(x[None, row : row + 1]), moving)
        moving.commit([0])
        exact = [q for q in range(row + 1) if q < 4 or row - q < 24]
        other = layer(mx.array(x[None, row : row + 1]), fixed)
        fixed.commit([0])
        if row % 7 == 0:
            want = attend(layer, x, row, places, at)
            np.testing.assert_allclose(np.array(out)[0, 0], want, atol=1e-4)
            want = attend(layer, x, row, exact, exact)
            np.testing.assert_allclose(np.array(other)[0, 0], want, atol=1e-4)
    assert moving.dropped > n_rows - 50


def test_files_that_lack_rows_are_refused() -> None:
    fixed, moving = SinkKVCache(4, 60), MovingSinkKVCache(shift, 32)
    for cache in (fixed, moving):
        cache.update_and_fetch(*made(range(1000), range(1000)))
        cache.commit(range(1000))
    short = {name: array[:, :, :62] for name, array in fixed.arrays().items()}
    with pytest.raises(ValueError, match="62 keys and 62 values for 1000 rows"):
        fixed.fork().restore(short, 1000)
    arrays = moving.arrays()
    del arrays["sinks"]
    with pytest.raises(ValueError, match="lacks the keys of its first 4 rows"):
        moving.fork().restore(arrays, 1000)

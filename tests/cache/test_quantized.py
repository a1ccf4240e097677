"""A quantized layer against lists of rows, and against mlx-lm's own."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models import cache as stock

from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.quantized import QuantizedKVCache
from mlx_eagle.tree import DraftTree


def rows(first: int, n: int) -> mx.array:
    """Rows that carry their own serial number, which quantizing keeps: [1, 2, n, 64]."""
    serial = mx.arange(first, first + n, dtype=mx.float32)[None, None, :, None]
    return mx.broadcast_to(serial, (1, 2, n, 64))


def unpack(cache: QuantizedKVCache, parts: tuple[mx.array, ...]) -> mx.array:
    return mx.dequantize(*parts, group_size=cache.group_size, bits=cache.bits)


def serials(cache: QuantizedKVCache, parts: tuple[mx.array, ...]) -> list[float]:
    found: list[float] = np.array(unpack(cache, parts))[0, 1, :, 3].tolist()
    return found


def test_attention_over_quantized_rows_is_that_over_the_rows_as_they_are_read_back() -> None:
    mx.random.seed(3)
    cache, plain = QuantizedKVCache(8, 32), KVCache()
    for n in (7, 5, 1):
        shapes = ((1, 4, n, 64), (1, 2, n, 64), (1, 2, n, 64))
        queries, keys, values = (mx.random.normal(shape) for shape in shapes)
        stored = [
            mx.dequantize(*mx.quantize(part, 32, 8), group_size=32, bits=8)
            for part in (keys, values)
        ]
        want = plain.attend(queries, *stored, 0.1)
        np.testing.assert_allclose(
            cache.attend(queries, keys, values, 0.1), want, rtol=1e-4, atol=1e-5
        )


class Model:
    """What a cache should hold, as a list."""

    def __init__(self, cache: QuantizedKVCache, kept: list[int]) -> None:
        self.cache, self.kept = cache, kept

    def append(self, first: int, n: int, path: list[int]) -> None:
        keys, values = self.cache.update_and_fetch(rows(first, n), rows(first, n) + 0.5)
        new = list(range(first, first + n))
        assert serials(self.cache, keys) == self.kept + new
        assert serials(self.cache, values) == [i + 0.5 for i in self.kept + new]
        self.cache.commit(path)
        self.kept = self.kept + [new[i] for i in path]
        assert self.cache.rows == self.cache.offset == len(self.kept)

    def check(self) -> None:
        """What it holds is what it should, whatever happened to its copies."""
        assert self.cache.rows == len(self.kept)
        parts = list(self.cache.arrays().values())
        if self.kept:
            assert serials(self.cache, tuple(parts[:3])) == self.kept

    def trim(self, rows: int) -> None:
        assert self.cache.can_trim(rows)
        self.cache.trim(rows)
        self.kept = self.kept[:rows]

    def fork(self) -> "Model":
        return Model(self.cache.fork(), self.kept)

    def reopened(self) -> "Model":
        twin = QuantizedKVCache(self.cache.bits, self.cache.group_size)
        twin.restore(self.cache.arrays(), self.cache.rows)
        return Model(twin, self.kept)


@given(st.data(), st.sampled_from([(8, 64), (4, 32)]))
def test_any_script_leaves_what_a_list_would_hold(
    data: st.DataObject, kind: tuple[int, int]
) -> None:
    models, made = [Model(QuantizedKVCache(*kind), [])], 0
    for _ in range(data.draw(st.integers(1, 12))):
        model = data.draw(st.sampled_from(models))
        action = data.draw(st.sampled_from(["prefill", "tree", "trim", "fork", "reopen"]))
        if action == "fork":
            models.append(model.fork())
        elif action == "reopen":
            models.append(model.reopened())
        elif action == "trim":
            model.trim(data.draw(st.integers(0, len(model.kept))))
        else:
            n = data.draw(st.integers(1, 300 if action == "prefill" else 9))
            later = data.draw(st.sets(st.integers(0, n - 1))) if action == "tree" else range(n)
            model.append(made, n, sorted(later))
            made += n
        for each in models:
            each.check()


def test_copies_do_not_see_what_the_other_adds() -> None:
    one = Model(QuantizedKVCache(8, 64), [])
    one.append(0, 3, [0, 1, 2])
    other = one.fork()
    one.append(10, 2, [0, 1])
    other.append(20, 2, [1])
    for model in (one, other):
        model.check()


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (4, 64), (4, 32)])
def test_rows_are_quantized_as_mlx_lm_does_it(bits: int, group_size: int) -> None:
    ours, theirs = QuantizedKVCache(bits, group_size), stock.QuantizedKVCache(group_size, bits)
    mx.random.seed(3)
    for n in (300, 1, 7):
        keys, values = mx.random.normal((2, 1, 2, n, 64))
        found, want = ours.update_and_fetch(keys, values), theirs.update_and_fetch(keys, values)
        ours.commit(range(n))
        for mine, its in zip((*found[0], *found[1]), (*want[0], *want[1]), strict=True):
            assert mine.dtype == its.dtype
            assert mx.array_equal(mine, its)
    assert (ours.bits, ours.group_size) == (bits, group_size)


def test_a_rejected_branch_leaves_no_trace() -> None:
    mx.random.seed(4)
    keys, values = mx.random.normal((2, 1, 2, 9, 64))
    path = [0, 2, 3, 7]
    cache, plain = QuantizedKVCache(4, 32), QuantizedKVCache(4, 32)
    cache.update_and_fetch(keys, values)
    cache.commit(path)
    for row in path:
        plain.update_and_fetch(keys[:, :, row : row + 1], values[:, :, row : row + 1])
        plain.commit([0])
    for name, want in plain.arrays().items():
        assert mx.array_equal(cache.arrays()[name], want), name


def test_masks_and_positions_are_those_of_a_cache_in_full_precision() -> None:
    whole, cache = TreeCache([KVCache()]), TreeCache([QuantizedKVCache(8, 64)])
    for each in (whole, cache):
        each.layers[0].update_and_fetch(rows(0, 5), rows(0, 5))
        each.commit(range(5))
        each.open(DraftTree.static(mx.array([7, 8, 5, 9]), [0, 0, 0, 1]))
    masks = [each.layers[0].make_mask(4) for each in (whole, cache)]
    assert mx.array_equal(*masks)
    assert cache.layers[0].offset.tolist() == [5, 6, 6, 7]


def test_blank_rows_lengthen_a_cache() -> None:
    cache = QuantizedKVCache(8, 64)
    cache.update_and_fetch(rows(0, 3), rows(0, 3))
    cache.commit(range(3))
    cache.pad(500)
    cache.commit(range(500))
    keys, _ = cache.update_and_fetch(rows(9, 1), rows(9, 1))
    assert serials(cache, keys) == [0, 1, 2, *([0] * 500), 9]


def test_nbytes_counts_all_six_buffers() -> None:
    cache = QuantizedKVCache(8, 64)
    assert cache.nbytes == 0
    cache.update_and_fetch(rows(0, 3), rows(0, 3))
    assert len(cache.buffers) == 6
    assert cache.nbytes == 2 * 2 * 256 * (64 + 2 * 4)  # k and v, heads, rows, bytes of a row


@pytest.mark.parametrize("harm", ["rows", "part"])
def test_a_file_that_does_not_fit_is_refused(harm: str) -> None:
    cache = QuantizedKVCache(8, 64)
    cache.update_and_fetch(rows(0, 3), rows(0, 3))
    cache.commit(range(3))
    arrays = cache.arrays()
    if harm == "part":
        del arrays["values.biases"]
    with pytest.raises(ValueError, match="parts of"):
        QuantizedKVCache(8, 64).restore(arrays, 4 if harm == "rows" else 3)

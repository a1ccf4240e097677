"""Every shape that is served fits a GPU's limits, and every query and key has its place."""

import itertools
from collections.abc import Iterator

import mlx.core as mx

from mlx_eagle.kernels.attention import ROWS
from mlx_eagle.kernels.attention_geometry import MOST_THREADGROUPS, SIMDGROUPS, Shape, geometry

THREADGROUP_MEMORY = 32768


def shapes() -> Iterator[Shape]:
    for rows, heads, n_kv_heads in itertools.product(ROWS, range(1, 17), (1, 2, 8, 40)):
        for head_dim in SIMDGROUPS:
            n_heads = heads * n_kv_heads
            yield Shape(n_heads, n_kv_heads, rows, head_dim, mx.float16, "none", 1.0)


def test_a_threadgroup_fits_its_memory_and_threads_and_a_lane_its_registers() -> None:
    for shape in shapes():
        laid = geometry(shape)
        queries, keys = 8 * laid.tiles, 8 * laid.simdgroups
        in_memory = 2 * queries * shape.head_dim + 4 * queries * (keys + 4) + 4 * queries
        assert in_memory <= THREADGROUP_MEMORY, shape
        assert 32 * laid.simdgroups <= 256
        columns = shape.head_dim // laid.simdgroups
        assert columns * laid.simdgroups == shape.head_dim
        assert columns // 8 in (2, 4)
        sums = laid.tiles * columns // 8 * 2
        assert sums <= 64, shape


def test_every_query_has_one_place_and_no_threadgroup_is_without() -> None:
    for shape in shapes():
        laid = geometry(shape)
        held = 8 * laid.tiles
        assert (laid.blocks - 1) * held < shape.queries <= laid.blocks * held


def test_up_to_64_queries_of_128_numbers_read_keys_once() -> None:
    for shape in shapes():
        if shape.head_dim <= 128 and shape.queries <= 64:
            assert geometry(shape).blocks == 1


def test_splits_have_a_block_of_keys_each_and_enough_for_their_queries() -> None:
    for shape in shapes():
        laid = geometry(shape)
        for length in (1, 100, 1000, 10_000, 100_000):
            splits = laid.splits(length)
            blocks = -(-length // (8 * laid.simdgroups))
            assert 1 <= splits <= blocks
            assert splits == 1 or length // splits >= 4 * shape.queries
            assert splits * shape.n_kv_heads * laid.blocks <= max(
                MOST_THREADGROUPS, shape.n_kv_heads * laid.blocks
            )


def test_a_longer_context_has_no_fewer_splits() -> None:
    laid = geometry(Shape(32, 8, 8, 128, mx.float16, "none", 1.0))
    splits = [laid.splits(length) for length in range(1, 20_000, 50)]
    assert splits == sorted(splits)
    assert (splits[0], splits[-1]) == (1, 64)

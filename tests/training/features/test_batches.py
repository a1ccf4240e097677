"""Packed rows become batches; the next one is read while the present one trains."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.training.batch import Batch, Example, Features
from mlx_eagle.training.features.batches import BatchReader, Row
from mlx_eagle.training.features.compute import as_numpy

EXAMPLES = [
    Example(np.arange(first, first + n, dtype=np.int32), np.arange(n) % 2 == 1)
    for first, n in ((10, 3), (20, 8), (40, 4))
]
ROWS: list[Row] = [[(0, 0, 3), (1, 5, 8)], [(2, 1, 4)], []]
LATER: list[Row] = [[(1, 0, 5)], [], [(0, 0, 3)]]


class Source:
    """Made-up features, in a type for each text; it knows on which thread it was read."""

    def __init__(self, *kinds: str, reads_ahead: bool = True) -> None:
        self.kinds, self.reads_ahead = kinds or ("float16",) * 3, reads_ahead
        self.threads: list[threading.Thread] = []
        self.pieces: list[tuple[int, int, int]] = []

    def read(self, example: int, start: int, stop: int) -> Features:
        self.threads.append(threading.current_thread())
        self.pieces.append((example, start, stop))
        if example == 99:
            raise OSError("the disk was taken away")
        tokens = EXAMPLES[example].tokens[start:stop]
        kind = getattr(mx, self.kinds[example])
        taps = mx.array(tokens[:, None] + np.array([0.5, 0.25])).astype(kind)
        return Features(as_numpy(taps), as_numpy(-taps[:, :1]), tokens * 2)


def reader(source: Source, dtype: mx.Dtype = mx.float32) -> BatchReader:
    return BatchReader(EXAMPLES, source, 7, dtype)


def test_a_batch_is_written_out() -> None:
    got = reader(Source()).read(ROWS)
    assert got.tokens.tolist() == [[10, 11, 12, 25, 26, 27, 0], [41, 42, 43, 0, 0, 0, 0], [0] * 7]
    assert got.texts.tolist() == [[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7]
    assert got.choices.tolist() == [[20, 22, 24, 50, 52, 54, 0], [82, 84, 86, 0, 0, 0, 0], [0] * 7]
    assert got.trained.astype(mx.int32).tolist() == [
        [0, 1, 0, 1, 0, 1, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [0] * 7,
    ]
    assert got.taps.shape == (3, 7, 2)
    assert got.taps[0, :4].tolist() == [[10.5, 10.25], [11.5, 11.25], [12.5, 12.25], [25.5, 25.25]]
    assert got.final[1].tolist() == [[-41.5], [-42.5], [-43.5], [0], [0], [0], [0]]
    assert [array.dtype for array in got] == [
        *(mx.int32, mx.float32, mx.float32, mx.int32, mx.int32, mx.bool_),
    ]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize(
    "kinds", [("bfloat16",) * 3, ("float32",) * 3, ("bfloat16", "float16", "float32")]
)
def test_streams_come_in_the_type_that_trains_however_they_are_kept(
    kinds: tuple[str, ...], dtype: mx.Dtype
) -> None:
    got = reader(Source(*kinds), dtype).read(ROWS)
    assert got.taps.dtype == got.final.dtype == dtype
    assert got.taps[0, 0].astype(mx.float32).tolist() == [10.5, 10.25]
    assert got.final[0, 5].item() == pytest.approx(-27.5)


def test_a_batch_without_a_piece_is_as_wide_as_others() -> None:
    got = reader(Source()).read([[], []])
    assert got.taps.shape == (2, 7, 2)
    assert got.final.shape == (2, 7, 1)
    assert got.texts.sum().item() == 0


def test_a_row_that_is_too_long_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="row 1 has more than 7 tokens"):
        reader(Source()).read([[], [(0, 0, 3), (1, 0, 5)]])


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_all_batches_come_in_order(reads_ahead: bool) -> None:
    source = Source(reads_ahead=reads_ahead)
    plan = [ROWS, LATER, ROWS]
    got = list(reader(source).read_all(plan))
    for batch, rows in zip(got, plan, strict=True):
        assert_same(batch, reader(Source()).read(rows))
    is_here = {thread is threading.current_thread() for thread in source.threads}
    assert is_here == {not reads_ahead}
    assert list(reader(source).read_all([])) == []


def assert_same(got: Batch, want: Batch) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert mx.array_equal(ours, theirs)


class Waiting(Source):
    """A source that says when it was asked for LATER's first piece."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def read(self, example: int, start: int, stop: int) -> Features:
        if (example, start, stop) == LATER[0][0]:
            self.began.set()
        return super().read(example, start, stop)


def test_the_next_batch_and_no_other_is_read_while_this_one_trains() -> None:
    source, asked = Waiting(), []

    def plan() -> Iterator[Sequence[Row]]:
        for rows in (ROWS, LATER, ROWS, ROWS):
            asked.append(rows)
            yield rows

    with closing(reader(source).read_all(plan())) as batches:
        next(batches)
        assert source.began.wait(10)  # nobody has asked for it yet
        assert len(asked) == 2


def test_an_error_comes_where_its_batch_is_asked_for() -> None:
    plan: list[list[Row]] = [ROWS, LATER, [[(99, 0, 1)]], ROWS]
    batches = reader(Source()).read_all(plan)
    assert_same(next(batches), reader(Source()).read(ROWS))
    assert_same(next(batches), reader(Source()).read(LATER))
    with pytest.raises(OSError, match="the disk was taken away"):
        next(batches)


def test_ctrl_c_between_two_batches_leaves_no_thread() -> None:
    source = Source()

    def train() -> None:
        with closing(reader(source).read_all([ROWS] * 5)) as batches:
            for _ in batches:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not any(thread.is_alive() for thread in source.threads)
    assert len(source.pieces) <= 2 * len([piece for row in ROWS for piece in row])

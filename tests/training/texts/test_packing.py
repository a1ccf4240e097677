"""Every token of every text once an epoch, no row too long, and the same rows again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.training.texts.packing import Batches, Piece, pack

LENGTHS = st.lists(st.integers(0, 90), max_size=60)


@given(LENGTHS, st.integers(16, 40), st.integers(0, 5), st.integers(0, 5))
def test_every_token_of_every_text_stands_once_and_no_row_is_too_long(
    lengths: list[int], length: int, seed: int, epoch: int
) -> None:
    packing = pack(np.array(lengths, dtype=np.int64), length, seed, epoch)
    seen = [np.zeros(n, dtype=int) for n in lengths]
    for number in range(packing.n_rows):
        row = packing.row(number)
        assert row
        assert sum(stop - start for _, start, stop in row) <= length
        for example, start, stop in row:
            assert start >= 0 and start + 3 <= stop <= lengths[example]
            seen[example][start:stop] += 1
    assert all((count == (len(count) >= 3)).all() for count in seen)
    n_tokens = sum(n for n in lengths if n >= 3)
    assert packing.fill * packing.n_rows * length == pytest.approx(n_tokens)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 3))
def test_batches_hold_every_row_of_every_epoch_once(
    lengths: list[int], n_rows: int, seed: int
) -> None:
    batches = Batches(lengths, 32, n_rows, seed)
    given_out: dict[int, list[Piece]] = {0: [], 1: []}
    for number in range(batches.total(2)):
        rows = batches.rows(number)
        assert len(rows) == n_rows
        assert any(rows)
        given_out[batches.epoch_of(number)] += [piece for row in rows for piece in row]
    for epoch, pieces in given_out.items():
        packing = pack(np.array(lengths, dtype=np.int64), 32, seed, epoch)
        assert pieces == [piece for n in range(packing.n_rows) for piece in packing.row(n)]


def test_a_batch_does_not_depend_on_those_asked_for_before() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    through = Batches(lengths, 256, 4, seed=3)
    rows = [through.rows(n) for n in range(through.total(3))]
    for number in (len(rows) - 1, 0, len(rows) // 2):
        assert Batches(lengths, 256, 4, seed=3).rows(number) == rows[number]


def test_seed_and_epoch_decide_the_order() -> None:
    lengths = np.full(100, 10)
    orders = [pack(lengths, 32, *which).pieces.tolist() for which in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] == pack(lengths, 32, 0, 0).pieces.tolist()
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_long_texts_are_cut_and_no_piece_is_too_short_to_train() -> None:
    packing = pack(np.array([41, 32]), 20, 0, 0)
    pieces = sorted(map(tuple, packing.pieces.tolist()))
    assert pieces == [(0, 0, 20), (0, 20, 38), (0, 38, 41), (1, 0, 20), (1, 20, 32)]


def test_little_is_wasted() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.8, 20000).astype(np.int64)
    packing = pack(lengths, 2048, 0, 0)
    sizes = packing.pieces[:, 2] - packing.pieces[:, 1]
    assert packing.fill > 0.995
    assert sizes.sum() == lengths[lengths >= 3].sum()


def test_rows_of_long_pieces_do_not_come_before_rows_of_short_ones() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.8, 4000).astype(np.int64)
    packing = pack(lengths, 2048, 0, 0)
    n_pieces = np.diff(packing.ends, prepend=0)
    half = packing.n_rows // 2
    assert 0.8 < n_pieces[:half].mean() / n_pieces[half:].mean() < 1.25


def test_without_texts_there_are_no_batches() -> None:
    batches = Batches([2, 0], 32, 4, seed=0)
    assert batches.total(3) == 0
    with pytest.raises(ValueError, match="no text is long enough"):
        batches.rows(0)
    with pytest.raises(ValueError, match="a row of 5 tokens is too short"):
        pack(np.array([9]), 5, 0, 0)

"""Which texts stand in which row of a batch: short ones share a row, long ones take several.

Pure: everything follows from the lengths, the seed and the epoch, so a run that goes on finds its
place by counting batches.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SHORTEST = 3  # tokens: fewer predict none, for the head looks at two and foresees the third
# Pieces that are packed together: more waste less, fewer mix the lengths of a row better.
WINDOW = 4096


class Piece(NamedTuple):
    """The tokens from `start` to `stop` of a text."""

    example: int
    start: int
    stop: int


class Packing(NamedTuple):
    """The rows of one epoch.

    Attributes:
        pieces: [P, 3] int64, as `Piece`, those of a row after each other.
        ends: [R] int64, pieces up to the end of each row.
        fill: share of the places in the rows that hold a token.
    """

    pieces: np.ndarray
    ends: np.ndarray
    fill: float

    @property
    def n_rows(self) -> int:
        """Rows of the epoch."""
        return len(self.ends)

    def row(self, number: int) -> list[Piece]:
        """Return the pieces of one row, at most as many tokens as a row has."""
        first = self.ends[number - 1] if number else 0
        return [Piece(*piece) for piece in self.pieces[first : self.ends[number]].tolist()]


def pack(lengths: np.ndarray, length: int, seed: int, epoch: int) -> Packing:
    """Return rows in which every token of every text stands once.

    Texts of fewer than three tokens are left out: they train nothing.

    Args:
        lengths: [E] integers, tokens of each text.
        length: tokens of a row.
        seed: of the order.
        epoch: another one is in another order.
    """
    rng = np.random.default_rng([seed, epoch])
    pieces = _cut(np.asarray(lengths, dtype=np.int64), length)
    pieces = pieces[rng.permutation(len(pieces))]
    sizes = pieces[:, 2] - pieces[:, 1]
    rows = np.empty(len(pieces), dtype=np.int64)
    n_rows = 0
    for first in range(0, len(pieces), WINDOW):
        window = slice(first, first + WINDOW)
        rows[window], n_new = _best_fit(sizes[window], length)
        rows[window] += n_rows
        n_rows += n_new
    rows = rng.permutation(n_rows)[rows]  # full rows come first of each window
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=n_rows))
    fill = float(sizes.sum() / (n_rows * length)) if n_rows else 0.0
    return Packing(pieces[order], ends, fill)


class Batches:
    """The batches of a run by their number, through all its epochs.

    The last batch of an epoch is filled with empty rows, so every text is seen once an epoch.

    Args:
        lengths: [E] integers, tokens of each text.
        length: tokens of a row.
        n_rows: rows of a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, length: int, n_rows: int, seed: int):
        sizes = np.asarray(lengths, dtype=np.int64)
        self._n_rows = n_rows
        self._packed = lru_cache(maxsize=1)(lambda epoch: pack(sizes, length, seed, epoch))
        self._first = [0]  # number of the first batch of each epoch that was packed so far

    def epoch(self, number: int) -> Packing:
        """Return the rows of an epoch, from 0 on."""
        packing: Packing = self._packed(number)
        return packing

    def total(self, epochs: int) -> int:
        """Return how many batches so many epochs have."""
        while len(self._first) <= epochs:
            n_rows = self.epoch(len(self._first) - 1).n_rows
            self._first.append(self._first[-1] + -(-n_rows // self._n_rows))
        return self._first[epochs]

    def epoch_of(self, number: int) -> int:
        """Return the epoch that a batch belongs to."""
        epoch = 0
        while number >= self.total(epoch + 1):
            epoch += 1
            if self.total(epoch) == self.total(epoch + 1):
                raise ValueError("no text is long enough to train on, so there are no batches")
        return epoch

    def rows(self, number: int) -> list[list[Piece]]:
        """Return the rows of a batch, from 0 on; a row may be empty."""
        epoch = self.epoch_of(number)
        first = (number - self.total(epoch)) * self._n_rows
        packing = self.epoch(epoch)
        numbers = range(first, first + self._n_rows)
        return [packing.row(n) if n < packing.n_rows else [] for n in numbers]


def _cut(lengths: np.ndarray, length: int) -> np.ndarray:
    """Return the pieces of texts, as in `Packing`; the last of a text is never too short.

    Where it would be, it takes tokens from the one before.
    """
    if length < 2 * SHORTEST:
        raise ValueError(f"a row of {length} tokens is too short; expected at least {2 * SHORTEST}")
    texts = np.flatnonzero(lengths >= SHORTEST)
    n_pieces = -(-lengths[texts] // length)
    example = np.repeat(texts, n_pieces)
    firsts = np.cumsum(n_pieces) - n_pieces
    place = np.arange(len(example)) - np.repeat(firsts, n_pieces)
    start = place * length
    rest = lengths[example] - start
    start -= np.where((place > 0) & (rest < SHORTEST), SHORTEST - rest, 0)
    is_last = place == np.repeat(n_pieces, n_pieces) - 1
    stop = np.where(is_last, lengths[example], np.append(start[1:], 0))
    return np.stack([example, start, stop], axis=1)  # [P, 3]


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Return the row of each piece, and how many rows there are.

    The longest come first, each into the fullest row that still has room for it.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    frees, numbers = list[int](), list[int]()  # of open rows, those with the least room first
    n_rows = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        at = bisect_left(frees, size)
        if at < len(frees):
            free, row = frees.pop(at), numbers.pop(at)
        else:
            free, row, n_rows = length, n_rows, n_rows + 1
        rows[piece] = row
        if (left := free - size) >= SHORTEST:
            at = bisect_left(frees, left)
            frees.insert(at, left)
            numbers.insert(at, row)
    return rows, n_rows

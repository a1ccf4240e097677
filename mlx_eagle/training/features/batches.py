"""Batches of packed rows: tokens and what the target computed of them, as MLX arrays.

The next batch is read from the disk on another thread while the present one trains. What that
thread touches are NumPy arrays; they become MLX's on the thread that trains.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.training.batch import Batch, Example, Features
from mlx_eagle.training.features.compute import as_float32, as_mlx
from mlx_eagle.training.features.source import FeatureSource

Piece = tuple[int, int, int]  # a text, the token of it at which the piece starts, and that after it
Row = Sequence[Piece]


Gathered = dict[str, np.ndarray]


class _Placed(NamedTuple):
    """A piece in a batch: its row, its columns, which of the row's it is, and its features."""

    row: int
    columns: slice
    number: int
    piece: Piece
    features: Features


class BatchReader:
    """Makes batches of rows.

    Args:
        examples: the texts.
        source: their features.
        length: L, tokens of a row; shorter rows are filled with zeros.
        dtype: of taps and final states in batches.
    """

    def __init__(
        self, examples: Sequence[Example], source: FeatureSource, length: int, dtype: mx.Dtype
    ) -> None:
        self._examples, self._source = examples, source
        self._length, self._dtype = length, dtype

    def read(self, rows: Sequence[Row]) -> Batch:
        """Return the batch of B rows of pieces.

        A piece that starts inside of a text is a text of its own: it does not see what came before.
        """
        return self._finish(self._gather(rows))

    def read_all(self, batches: Iterable[Sequence[Row]]) -> Generator[Batch]:
        """Yield the batch of each of several lists of rows, the next of which is read meanwhile.

        What goes wrong is raised where that batch is asked for. Close it (`contextlib.closing`) to
        end early: what is being read is waited for.
        """
        if not self._source.reads_ahead:
            yield from map(self.read, batches)
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="mlx-eagle-batches")
        try:
            for gathered in _one_ahead(pool, self._gather, batches):
                yield self._finish(gathered)
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, rows: Sequence[Row]) -> Gathered:
        """Return the arrays of a `Batch`, streams in the type in which they are kept."""
        placed, shape = list(self._place(rows)), (len(rows), self._length)
        found = {name: np.zeros(shape, dtype=np.int32) for name in ("tokens", "choices", "texts")}
        found["trained"] = np.zeros(shape, dtype=np.bool_)
        for row, columns, number, (example, start, stop), features in placed:
            found["tokens"][row, columns] = self._examples[example].tokens[start:stop]
            found["trained"][row, columns] = self._examples[example].trained[start:stop]
            found["choices"][row, columns] = features.choices
            found["texts"][row, columns] = number
        # A batch without any piece is as wide as others: a piece of no tokens tells.
        read = [part.features for part in placed] or [self._source.read(0, 0, 0)]
        for name in ("taps", "final"):
            parts = _alike([getattr(part, name) for part in read])
            found[name] = np.zeros((*shape, parts[0].shape[1]), dtype=parts[0].dtype)
            for part, values in zip(placed, parts, strict=False):
                found[name][part.row, part.columns] = values
        return found

    def _place(self, rows: Sequence[Row]) -> Iterator[_Placed]:
        """Yield where each piece goes: rows are filled from the left."""
        for row, pieces in enumerate(rows):
            end = 0
            for number, (example, start, stop) in enumerate(pieces, start=1):
                columns = slice(end, end := end + stop - start)
                assert end <= self._length, f"row {row} has more than {self._length} tokens"
                features = self._source.read(example, start, stop)
                yield _Placed(row, columns, number, (example, start, stop), features)

    def _finish(self, gathered: Gathered) -> Batch:
        """Return a batch as MLX arrays."""
        batch = Batch(**{name: as_mlx(array) for name, array in gathered.items()})
        taps, final = (stream.astype(self._dtype) for stream in (batch.taps, batch.final))
        return batch._replace(taps=taps, final=final)


def _alike(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return streams of one type: float32 for all, where some are kept in another type."""
    if len({part.dtype for part in parts}) == 1:
        return parts
    return [as_float32(part) for part in parts]


def _one_ahead(
    pool: ThreadPoolExecutor,
    gather: Callable[[Sequence[Row]], Gathered],
    batches: Iterable[Sequence[Row]],
) -> Iterator[Gathered]:
    """Yield what is gathered for each batch; that for the next one is begun before."""
    present: Future[Gathered] | None = None
    for rows in batches:
        following = pool.submit(gather, rows)
        if present is not None:
            yield present.result()
        present = following
    if present is not None:
        yield present.result()

"""Batches of a training by the number of the update, for one of the processes that train."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import mlx.core as mx
import numpy as np

from mlx_eagle.training.batch import Batch, Example
from mlx_eagle.training.features.batches import BatchReader
from mlx_eagle.training.features.source import FeatureSource
from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.processes import Processes
from mlx_eagle.training.texts.packing import Batches, Piece


class Texts:
    """Texts with their features, packed into batches of rows.

    Args:
        examples: the texts.
        source: their features.
        length: tokens of a row.
        dtype: of features in batches.
        n_rows: rows of a batch, of all processes together.
        seed: of their order.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        source: FeatureSource,
        length: int,
        dtype: mx.Dtype,
        n_rows: int,
        seed: int,
    ) -> None:
        lengths = np.array([len(example.tokens) for example in examples], dtype=np.int64)
        self.packed = Batches(lengths, length, n_rows, seed)
        self.reader = BatchReader(examples, source, length, dtype)


class RowData:
    """What a head is trained and measured on, as `loop.TrainingData` asks for it."""

    def __init__(
        self, train: Texts, heldout: Texts | None, options: LoopOptions, processes: Processes
    ) -> None:
        self._train, self._heldout = train, heldout
        self._options, self._processes = options, processes

    @property
    def n_updates(self) -> int:
        """Updates of the whole training."""
        return count_updates(self._train.packed, self._options)

    def batches(self, update: int) -> list[Batch]:
        """Return the batches of an update."""
        first = update * self._options.accumulate
        numbers = range(first, first + self._options.accumulate)
        return [self._train.reader.read(self._own_rows(self._train, n)) for n in numbers]

    def heldout(self) -> Iterator[Batch]:
        """Yield this process' share of what is held out."""
        texts = self._heldout
        if texts is None:
            return
        numbers = range(texts.packed.total(1))
        with closing(texts.reader.read_all(self._own_rows(texts, n) for n in numbers)) as batches:
            yield from batches

    def _own_rows(self, texts: Texts, number: int) -> list[list[Piece]]:
        """Return this process' rows of a batch."""
        first = self._processes.rank * self._options.batch
        return texts.packed.rows(number)[first : first + self._options.batch]


def count_updates(packed: Batches, options: LoopOptions) -> int:
    """Return how many updates a training on packed texts has."""
    n_batches = packed.total(options.epochs)
    return min(-(-n_batches // options.accumulate), options.max_updates or n_batches)

"""Batches by the number of the update, shared between processes."""

import mlx.core as mx
import numpy as np

from mlx_eagle.training.batch import Batch, Example, Features
from mlx_eagle.training.features.row_data import RowData, Texts
from mlx_eagle.training.features.source import ComputedFeatures
from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.processes import Processes

LENGTH = 16
RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(RNG.integers(1, 50, n).astype(np.int32), np.ones(n, dtype=bool))
    for n in RNG.integers(3, 30, 40)
]


class Rank(Processes):
    """One of several processes, as far as its number goes."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


def computed(tokens: np.ndarray) -> Features:
    values = np.repeat(tokens[:, None].astype(np.float32), 4, axis=1)
    return Features(values, values[:, :2], tokens + 1)


def data(processes: Processes, **options: int) -> RowData:
    loop = LoopOptions(**options)
    source = ComputedFeatures(EXAMPLES, computed)
    n_rows = loop.batch * processes.size
    texts = Texts(EXAMPLES, source, LENGTH, mx.float32, n_rows, seed=3)
    return RowData(texts, texts, loop, processes)


def rows_of(batches: list[Batch]) -> list[list[int]]:
    return [row for batch in batches for row in batch.tokens.tolist()]


def test_two_processes_have_the_rows_of_one_with_twice_the_batch() -> None:
    whole = data(Processes(), batch=4, epochs=2)
    halves = [data(Rank(rank, 2), batch=2, epochs=2) for rank in range(2)]
    assert {part.n_updates for part in halves} == {whole.n_updates}
    for update in range(whole.n_updates):
        together = [row for part in halves for row in rows_of(part.batches(update))]
        assert together == rows_of(whole.batches(update))


def test_every_token_is_trained_on_once_an_epoch() -> None:
    one = data(Processes(), batch=2, epochs=1)
    seen = [t for u in range(one.n_updates) for row in rows_of(one.batches(u)) for t in row if t]
    assert sorted(seen) == sorted(t for example in EXAMPLES for t in example.tokens.tolist())


def test_an_update_has_the_same_batches_whenever_it_is_asked_for() -> None:
    once, again = (data(Processes(), batch=2, epochs=3) for _ in range(2))
    last = once.n_updates - 1
    assert (
        rows_of(again.batches(last))
        == [rows_of(once.batches(update)) for update in range(once.n_updates)][last]
    )


def test_fewer_updates_can_be_asked_for() -> None:
    assert data(Processes(), epochs=3, max_updates=2).n_updates == 2


def test_what_is_held_out_is_shared_between_processes() -> None:
    whole = rows_of(list(data(Processes(), batch=4).heldout()))
    parts = [rows_of(list(data(Rank(rank, 2), batch=2).heldout())) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)

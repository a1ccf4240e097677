"""The likeliest tokens of a vocabulary, found without sorting it."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.sampling.largest import top_ids


@pytest.mark.parametrize("width", [2, 300, 4096, 4097, 32000, 151_936])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_likeliest_of_a_vocabulary_are_those_of_a_full_sort(width: int, k: int) -> None:
    k = min(k, width)
    mx.random.seed(width + k)
    logits = mx.random.normal((3, width))
    logits[1] = mx.round(logits[1])  # many are equal
    logits[2] = mx.where(mx.arange(width) < width // 2, -mx.inf, logits[2])
    ids = top_ids(logits, k)
    assert ids.shape == (3, k)
    assert all(len(set(row)) == k for row in ids.tolist())
    found = np.array(mx.take_along_axis(logits, ids, axis=-1))
    assert np.array_equal(found, -np.sort(-np.array(logits), axis=-1)[:, :k])


def test_no_row_of_a_vocabulary_is_sorted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_sizes: list[int] = []
    plain = mx.argsort

    def noting(array: mx.array, axis: int) -> mx.array:
        sorted_sizes.append(array.shape[axis])
        return plain(array, axis=axis)

    monkeypatch.setattr(mx, "argsort", noting)
    monkeypatch.setattr(mx, "argpartition", lambda *_, **__: pytest.fail("sorts on a GPU"))
    top_ids(mx.zeros((1, 151_936)), 4)
    assert max(sorted_sizes) <= 2048, "a block of Metal's sort"


def test_ids_are_of_the_vocabulary_even_where_nothing_is_likely() -> None:
    logits = mx.full((1, 5000), -mx.inf)
    logits[0, 4999] = 1.0
    ids = top_ids(logits, 4)[0].tolist()
    assert ids[0] == 4999
    assert max(ids) < 5000

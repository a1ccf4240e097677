"""Features from the disk and from the target are asked for in the same way."""

from pathlib import Path

import numpy as np
import pytest

from mlx_eagle.target.target import Target
from mlx_eagle.training.batch import Example, Features
from mlx_eagle.training.features.compute import compute, tap_for_features
from mlx_eagle.training.features.source import ComputedFeatures, FeatureSource
from mlx_eagle.training.features.store import FeatureStore, contents_of
from tiny_models import build_target

EXAMPLES = [
    Example(np.arange(first, first + 9, dtype=np.int32), np.ones(9, np.bool_))
    for first in (3, 40, 70)
]


class Counted:
    """Made-up features; it counts how often they were computed."""

    def __init__(self) -> None:
        self.texts: list[int] = []

    def __call__(self, tokens: np.ndarray) -> Features:
        self.texts.append(int(tokens[0]))
        return Features(tokens[:, None] * [1.0, 2.0], tokens[:, None] * 3.0, tokens + 1)


def test_both_sources_give_the_same_features(tmp_path: Path) -> None:
    target = tap_for_features(Target(build_target("llama")), (1, 3))
    contents = contents_of(target, "llama", EXAMPLES)
    assert contents[:4] == ("llama", "float32", (1, 3, 5), 64)
    store = FeatureStore(tmp_path / "features", contents)
    store.complete(lambda tokens: compute(target, tokens), lambda done, total: None)
    computed = ComputedFeatures(EXAMPLES, lambda tokens: compute(target, tokens))
    sources: list[FeatureSource] = [store, computed]
    for example, start, stop in ((0, 0, 9), (2, 3, 5), (1, 8, 9)):
        kept, fresh = (source.read(example, start, stop) for source in sources)
        assert kept.taps.shape == fresh.taps.shape == (stop - start, 128)
        assert np.allclose(kept.taps, fresh.taps, rtol=1e-3, atol=1e-4)
        assert np.allclose(kept.final, fresh.final, rtol=1e-3, atol=1e-4)
        assert kept.choices.tolist() == fresh.choices.tolist()


def test_a_text_is_computed_whole_and_once_for_all_its_pieces() -> None:
    counted = Counted()
    source = ComputedFeatures(EXAMPLES, counted)
    pieces = [source.read(1, start, start + 3) for start in (6, 0, 3)]
    assert [piece.choices.tolist() for piece in pieces] == [
        [47, 48, 49],
        [41, 42, 43],
        [44, 45, 46],
    ]
    assert pieces[0].taps.tolist() == [[46, 92], [47, 94], [48, 96]]
    assert counted.texts == [40]


@pytest.mark.parametrize(("most_texts", "again"), [(2, [70, 3]), (3, [70])])
def test_the_text_that_was_not_used_for_longest_is_forgotten(
    most_texts: int, again: list[int]
) -> None:
    counted = Counted()
    source = ComputedFeatures(EXAMPLES, counted, most_texts)
    for example in (0, 1, 0, 1, 2, 1, 0):
        source.read(example, 0, 1)
    assert counted.texts == [3, 40, *again]

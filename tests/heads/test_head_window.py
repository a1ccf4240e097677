"""Heads that attend to the first tokens and the newest: the same cost however long the text is."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_eagle.cache.attention_sinks import MovingSinkKVCache
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.p_eagle import PEagleDrafter
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.tree import TreeShape


def drafter_of(config: HeadConfig, kind: type[EagleDrafter], window: int | None) -> EagleDrafter:
    mx.random.seed(5)
    head, embedding = EagleHead(config), nn.Embedding(64, 32)
    head.lm_head.weight = 4 * head.lm_head.weight
    embedding.weight = 8 * embedding.weight
    target: Any = SimpleNamespace(embedding=embedding)
    return kind(head, target, window)


KINDS: list[Any] = [
    pytest.param(EagleDrafter, {}, id="eagle3"),
    pytest.param(PEagleDrafter, {"algorithm": "p-eagle", "mask_token_id": 63}, id="p-eagle"),
    pytest.param(
        EagleDrafter, {"num_hidden_layers": 2, "sliding_windows": (None, 24)}, id="two layers"
    ),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_a_head_with_a_window_costs_the_same_however_long_the_text_is(
    kind: type[EagleDrafter], changes: dict[str, Any], head_config: HeadConfig
) -> None:
    mx.random.seed(7)
    taps, next_tokens = mx.random.normal((3000, 96)), mx.random.randint(0, 64, (3000,))
    whole, pieces = (drafter_of(replace(head_config, **changes), kind, 64) for _ in range(2))
    whole.observe(taps, next_tokens)
    mx.eval(whole.buffers)
    sizes = []
    for start in range(0, 3000, 100):
        pieces.observe(taps[start : start + 100], next_tokens[start : start + 100])
        mx.eval(pieces.buffers)
        sizes.append(pieces.nbytes)
    assert len(set(sizes[2:])) == 1
    assert whole.nbytes == sizes[-1]
    for drafter in (whole, pieces):
        assert drafter.rows == 3000
        assert drafter.draft(mx.array([1]), TreeShape(3, 4, 8)).n_nodes == 9
    if kind is EagleDrafter and not changes:  # a first layer's rows depend on their inputs alone
        for name, array in whole.arrays().items():
            np.testing.assert_allclose(np.array(array), np.array(pieces.arrays()[name]), atol=1e-5)


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_in_a_short_text_a_window_changes_nothing(
    kind: type[EagleDrafter], changes: dict[str, Any], head_config: HeadConfig
) -> None:
    mx.random.seed(7)
    taps, next_tokens = mx.random.normal((60, 96)), mx.random.randint(0, 64, (60,))
    trees = []
    for window in (None, 0, 64):
        drafter = drafter_of(replace(head_config, **changes), kind, window)
        drafter.observe(taps, next_tokens)
        trees.append(drafter.draft(mx.array([1]), TreeShape(3, 4, 8)))
    for tree in trees[1:]:
        assert tree.tokens.tolist() == trees[0].tokens.tolist()
        assert tree.parents.tolist() == trees[0].parents.tolist()


def test_a_head_goes_back_to_any_place_and_on_from_there(head_config: HeadConfig) -> None:
    mx.random.seed(7)
    taps, next_tokens = mx.random.normal((500, 96)), mx.random.randint(0, 64, (500,))
    drafter = drafter_of(head_config, EagleDrafter, 32)
    drafter.observe(taps, next_tokens)
    for rows in (495, 200, 3):
        drafter.trim(rows)
        twin = drafter.fork()
        other = drafter_of(head_config, EagleDrafter, 32)
        other.restore(drafter.arrays(), rows)
        trees = []
        for each in (drafter, twin, other):
            each.observe(taps[rows : rows + 2], next_tokens[rows : rows + 2])
            trees.append(each.draft(mx.array([1]), TreeShape(3, 4, 8)).tokens.tolist())
        assert trees[0] == trees[1] == trees[2]
    # After a return to row 3 nothing is missing, so a head without a window drafts the same.
    plain = drafter_of(head_config, EagleDrafter, None)
    plain.observe(taps[:5], next_tokens[:5])
    assert plain.draft(mx.array([1]), TreeShape(3, 4, 8)).tokens.tolist() == trees[0]


def test_a_layer_with_a_window_of_its_own_gets_no_sinks(head_config: HeadConfig) -> None:
    config = replace(head_config, num_hidden_layers=2, sliding_windows=(None, 24))
    caches = EagleHead(config).make_cache(64).layers
    assert [(type(layer), layer.sinks) for layer in caches] == [
        (MovingSinkKVCache, 4),
        (MovingSinkKVCache, 0),
    ]
    for window in (None, 0):
        assert [type(c) for c in EagleHead(config).make_cache(window).layers] == [KVCache] * 2


def test_a_window_that_is_too_short_is_refused(head_config: HeadConfig) -> None:
    with pytest.raises(EagleError, match="window is 15 rows; it must be 16 or more"):
        EagleHead(head_config).make_cache(15)


@pytest.mark.parametrize(("length", "window"), [(512, 512), (2048, 2048), (131072, 2048), (8, 16)])
def test_the_default_window_is_what_heads_are_trained_on(
    length: int, window: int, head_config: HeadConfig
) -> None:
    config = replace(head_config, max_position_embeddings=length)
    assert EagleHead(config).default_window == window


@pytest.mark.parametrize(("window", "most"), [(None, 1300), (64, 64), (2048, 512)])
def test_a_head_with_a_window_takes_in_a_long_prompt_piece_by_piece(
    window: int | None, most: int, head_config: HeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def fuse(self: EagleHead, taps: mx.array) -> mx.array:
        lengths.append(taps.shape[1])
        return self.fc(taps)

    monkeypatch.setattr(EagleHead, "fuse", fuse)
    drafter = drafter_of(head_config, EagleDrafter, window)
    drafter.observe(mx.zeros((1300, 96)), mx.zeros((1300,), dtype=mx.int32))
    assert (sum(lengths), max(lengths)) == (1300, most)

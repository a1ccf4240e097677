"""Caches are written in place: a commit, with gaps or without, copies no buffer of any layer.

MLX copies a whole buffer where something that was submitted still reads it; on a GPU that is the
memory traffic of the whole cache, once a round.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.cache.attention_sinks import SinkKVCache
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

PARENTS = [0, 0, 1, 0, 2, 1, 4, 0]


def place(buffer: mx.array) -> int:
    """Where the data of an evaluated array are."""
    return int(np.array(buffer, copy=False).ctypes.data)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers so large that none has to grow or move to its front."""
    monkeypatch.setattr(KVCache, "step", 4096)
    for kind in (WindowKVCache, SinkKVCache):
        monkeypatch.setattr(kind, "slack", 2048)


KINDS: dict[str, tuple[str, KVOptions]] = {
    "whole": ("llama", KVOptions()),
    "8 bits": ("llama", KVOptions(bits=8, group_size=32)),
    "4 bits": ("llama", KVOptions(bits=4, group_size=32)),
    "sinks": ("llama", KVOptions(max_size=64)),
    "windows": ("gemma3_text", KVOptions()),
    "windows and sinks of attention": ("gpt_oss", KVOptions()),
}


def accepted_paths(seed: int) -> Iterator[list[int]]:
    """Random root-to-node paths of the tree, gaps in most."""
    chance = random.Random(seed)
    while True:
        path = [chance.randrange(len(PARENTS))]
        while path[0]:
            path.insert(0, PARENTS[path[0]])
        yield path


def moved_buffers(kind: str, n_rounds: int, tiny_target: Callable[..., Any]) -> int:
    """Return how many buffers are elsewhere after rounds of random paths."""
    architecture, options = KINDS[kind]
    target = Target(tiny_target(architecture, head_dim=32), taps=())
    target.kv = options
    cache = target.make_cache()
    assert isinstance(cache, TreeCache)
    target.extend(mx.arange(2, 40), cache)
    mx.eval(cache.buffers)
    before = [place(buffer) for buffer in cache.buffers]
    paths = accepted_paths(seed=1)
    for n in range(n_rounds):
        tree = DraftTree.static(mx.arange(3 + n % 50, 3 + n % 50 + len(PARENTS)), PARENTS)
        mx.eval(target.verify(tree, cache).logits)
        cache.commit(next(paths))
    mx.eval(cache.buffers)
    pairs = zip(before, map(place, cache.buffers), strict=True)
    return sum(old != new for old, new in pairs)


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("kind", KINDS)
def test_no_buffer_moves_in_200_rounds_of_random_paths(
    kind: str, tiny_target: Callable[..., Any], is_quick: bool
) -> None:
    assert moved_buffers(kind, 25 if is_quick else 200, tiny_target) == 0


@pytest.mark.usefixtures("roomy")
def test_the_check_sees_buffers_that_are_copied(
    tiny_target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rounds, read back from the buffers instead of the rows as they came."""

    def forgetful(cache: KVCache, parts: list[mx.array]) -> None:
        cache.pending += parts[0].shape[2]

    monkeypatch.setattr(KVCache, "_take_in", forgetful)
    assert moved_buffers("whole", 20, tiny_target) > 0

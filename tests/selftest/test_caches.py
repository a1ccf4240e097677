"""Caches after commits: right ones pass, planted faults are found."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from mlx_eagle.cache.kv import KVCache
from mlx_eagle.selftest.caches import KINDS, check_caches
from mlx_eagle.target.target import Target
from noisy import noise_on

SIZES = {"head_dim": 32, "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("architecture", "is_noisy"),
    [
        ("llama", False),
        ("gemma3_text", True),
        broad("llama", True),
        broad("gemma3_text", False),
        broad("qwen3_moe", False),
        broad("qwen3_moe", True),
    ],
)
def test_caches_of_every_kind_are_right(
    architecture: str, is_noisy: bool, tiny_target: Callable[..., Any]
) -> None:
    model = tiny_target(architecture, **SIZES)
    if not is_noisy:
        found = check_caches(Target(model))
        assert all(check.difference is not None and check.difference < 1e-3 for check in found)
    else:
        with noise_on(model):
            found = check_caches(Target(model))
    assert [check.kind for check in found] == ["whole", "8 bits", "4 bits", "48 rows"]
    assert all(check.is_right for check in found)


def test_a_commit_that_keeps_another_row_is_found(
    tiny_target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    plain = KVCache.commit
    kinds = {"whole": KINDS["whole"], "4 bits": KINDS["4 bits"]} if is_quick else KINDS
    monkeypatch.setattr("mlx_eagle.selftest.caches.KINDS", kinds)

    def commit(self: KVCache, path: Sequence[int]) -> None:
        plain(self, [*path[:-1], self.pending - 1])

    monkeypatch.setattr(KVCache, "commit", commit)
    model = tiny_target("llama", **SIZES)
    model.set_dtype(mx.bfloat16)
    with noise_on(model):
        found = check_caches(Target(model))
    assert len(found) == len(kinds)
    assert not any(check.is_right for check in found)

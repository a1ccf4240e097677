"""Memory during a long answer: what a cache has outgrown does not pile up.

MLX keeps buffers that were freed for arrays of the same size, and a cache that grows never asks for
that size again. On a CPU MLX keeps few of them, on a GPU nearly all; here the limit is the GPU's.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from doubles import Letters, make_engine
from mlx_eagle.decoding import loop
from mlx_eagle.tree_shape import TreeShape

SIZES = {"max_position_embeddings": 8192, "num_hidden_layers": 2, "head_dim": 64}


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Let MLX keep what is freed, as it does on a GPU."""
    before = mx.set_cache_limit(10**10)
    mx.clear_cache()
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


def cached_bytes(engine: Any, n_tokens: int, tree: TreeShape | None) -> tuple[list[int], int]:
    """Return what MLX keeps unused after every 250 tokens, and the bytes of the caches."""
    session = engine.session()
    options: dict[str, Any] = {"tree": tree} if tree else {"speculate": False}
    stream = session.stream_generate([5, 9, 17], max_tokens=n_tokens, ignore_eos=True, **options)
    found = [mx.get_cache_memory() for _ in islice(stream, 0, None, 250)]
    stream.close()
    return found, session.prefix.nbytes


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("tree", [None, broad(TreeShape(3, 2, 5))])
def test_what_is_kept_unused_does_not_grow_with_the_answer(
    tree: TreeShape | None,
    tiny_target: Callable[..., Any],
    head_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    is_quick: bool,
) -> None:
    engine = make_engine(tiny_target("llama", **SIZES), head_config, Letters())
    n_tokens = 1100 if is_quick else 4000
    found, held = cached_bytes(engine, n_tokens, tree)
    monkeypatch.setattr(loop, "FREED_EVERY", 10**9)
    piled, _ = cached_bytes(engine, n_tokens, tree)
    assert max(found) < piled[-1] / 2
    if tree is None:
        assert max(found) < 2 * held

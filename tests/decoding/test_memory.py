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


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that holds nothing per cached row, as fused kernels do; the CPU keeps scores."""

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **_: Any) -> mx.array:
        newest = (..., slice(-queries.shape[2], None), slice(None))
        seen = keys[newest] + values[newest]
        return queries + mx.repeat(seen, queries.shape[1] // keys.shape[1], axis=1)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attend)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.broad
@pytest.mark.parametrize("tree", [None, TreeShape(3, 2, 5)])
def test_what_is_kept_unused_does_not_grow_with_the_answer(
    tree: TreeShape | None,
    tiny_target: Callable[..., Any],
    head_config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(tiny_target("llama", **SIZES), head_config, Letters())
    found, held = cached_bytes(engine, 4000, tree)
    monkeypatch.setattr(loop.Garbage, "collect", lambda *_: None)
    piled, _ = cached_bytes(engine, 4000, tree)
    assert max(found) < 2 / 3 * piled[-1]
    if tree is None:
        assert max(found) < 2 * held


@pytest.mark.usefixtures("unlimited", "fused")
@pytest.mark.parametrize("tree", [None, broad(TreeShape.chain(3)), broad(TreeShape(3, 2, 5))])
def test_memory_is_flat_to_two_percent_but_for_the_caches(
    tree: TreeShape | None, tiny_target: Callable[..., Any], head_config: Any, is_quick: bool
) -> None:
    """All that MLX holds, in use and unused, less weights and caches, after every token.

    From a quarter of the answer on it may move by 2 % of what the caches take in the end. Where a
    cache grows, 4 times in 1000 tokens, the old buffers are there for two rounds more.
    """
    engine = make_engine(tiny_target("llama", **SIZES), head_config, Letters())
    session, n_tokens = engine.session(), 160 if is_quick else 4000
    weights = mx.get_active_memory()
    options: dict[str, Any] = {"tree": tree} if tree else {"speculate": False}
    # So that rows and tokens do not fill up together; by default the cache grows once, late.
    prompt = [5 + n % 100 for n in range(380 if is_quick else 200)]
    beyond = []
    for _ in session.stream_generate(prompt, max_tokens=n_tokens, ignore_eos=True, **options):
        held = mx.get_active_memory() + mx.get_cache_memory()
        beyond.append(held - weights - session.prefix.nbytes)
    later = beyond[n_tokens // 4 :]
    at_most = sorted(later)[len(later) // 2] + 0.02 * session.prefix.nbytes
    rows_in_round = tree.nodes + 1 if tree else 1
    n_grown = 1 + n_tokens // 256
    assert sum(bytes_ > at_most for bytes_ in later) <= 2 * rows_in_round * n_grown
    points = beyond[n_tokens // 4 - 1 :: n_tokens // 4]
    assert max(points) < at_most, points

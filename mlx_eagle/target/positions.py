"""Rope at one position per node, for rope modules that were made for sequences.

A rope module rotates row i of its input to position offset + i. Siblings of a tree stand at the
same position, so `accept_node_positions` gives one rope *instance* a subclass that also takes a
vector of positions. Parameters, attributes and the call with a plain offset stay as they were.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.target.hooks import Undo, wrap_method


def is_rope(module: nn.Module) -> bool:
    """Say whether a module rotates queries and keys by a position `offset`."""
    calls = [vars(kind)["__call__"] for kind in type(module).__mro__ if "__call__" in vars(kind)]
    takes_offset = any("offset" in inspect.signature(call).parameters for call in calls)
    return takes_offset and not module.children()


def accept_node_positions(rope: nn.Module) -> list[Undo]:
    """Let one rope instance take `offset` as a vector [N], a position per row of its input.

    Returns:
        What undoes it; nothing where the instance did so already.
    """
    if type(rope).__call__.__name__ == _rotate.__name__:
        return []
    return [wrap_method(rope, "__call__", _rotate)]


def rotates_rows_alike(rope: nn.Module) -> bool:
    """Say whether rows far on are rotated the same together as one by one.

    They are not where the base follows the length of the text (dynamic NTK scaling): then keys
    depend on how many tokens were run at once.
    """
    if not hasattr(rope, "dims"):
        return True
    far = 300_000  # beyond where such bases begin to grow; float32 still tells their growth
    together = rope(mx.ones((1, 1, 2, rope.dims)), offset=far)
    alone = [rope(mx.ones((1, 1, 1, rope.dims)), offset=far + row) for row in range(2)]
    return bool(mx.allclose(together, mx.concatenate(alone, axis=2), rtol=0, atol=1e-3))


def _rotate(
    plain: Callable[..., mx.array],
    self: nn.Module,
    x: mx.array,
    offset: Any = 0,
    *args: Any,
    **kwargs: Any,
) -> mx.array:
    """Rotate x [1, heads, N, head_dim].

    `mx.fast.rope` takes one offset per batch row, so the node axis becomes the batch axis. mlx-lm's
    batches [B, heads, L, head_dim] have an offset per row themselves, and go on from it.
    """
    is_tree = isinstance(offset, mx.array) and offset.size > 1 and x.shape[0] == 1
    if not is_tree:
        return plain(self, x, offset, *args, **kwargs)
    rotated = plain(self, x.transpose(2, 1, 0, 3), offset, *args, **kwargs)  # [N, heads, 1, ..]
    return rotated.transpose(2, 1, 0, 3)


def keep_fractional_bounds(rope: nn.Module, theta: float, scaling: dict[str, Any]) -> None:
    """Let a YaRN rope blend its frequencies between unrounded bounds ("truncate": false).

    mlx-lm rounds the bounds to whole dimensions, as most models do; gpt-oss and heads for it do
    not (YaRN, arXiv 2309.00071, section 3.2, and the key of that name in transformers).

    Args:
        rope: mlx-lm's YarnRoPE; changed in place.
        theta: the base.
        scaling: `factor`, `original_max_position_embeddings`, perhaps `beta_fast`, `beta_slow`.
    """
    dims, length = rope.dims, scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """Return the dimension that turns so often in the original length."""
        return float(dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)))

    low = max(dimension(scaling.get("beta_fast", 32)), 0)
    high = min(dimension(scaling.get("beta_slow", 1)), dims - 1)
    plain = theta ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)  # [dims / 2]
    index = mx.arange(dims // 2, dtype=mx.float32)
    stretched = mx.clip((index - low) / max(high - low, 1e-3), 0, 1)
    rope._freqs = 1 / (stretched / (scaling["factor"] * plain) + (1 - stretched) / plain)

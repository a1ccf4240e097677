"""Rope at one position per node: trees in a module that was made for sequences.

A rope module rotates row i of its input to position offset + i. Siblings of a tree stand at the
same position, so `accept_node_positions` gives one rope *instance* a subclass that also takes a
vector of positions. Parameters, attributes and the call with a plain offset stay as they were.
"""

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def is_rope(module: nn.Module) -> bool:
    """Say whether a module rotates queries and keys by a position `offset`."""
    parameters = inspect.signature(type(module).__call__).parameters
    return "offset" in parameters and not module.children()


def accept_node_positions(rope: nn.Module) -> None:
    """Let one rope instance take `offset` as a vector [N], a position per row of its input."""
    wrap_call(rope, _rotate)


def wrap_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Give one instance a subclass whose `__call__` is `call(plain, module, ...)`.

    Args:
        module: changed in place; its parameters keep their paths.
        call: receives the class's present `__call__` first, then its arguments.
    """
    kind = type(module)
    plain = kind.__call__

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        return call(plain, self, *args, **kwargs)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})


def _rotate(
    plain: Callable[..., mx.array],
    self: nn.Module,
    x: mx.array,
    offset: Any = 0,
    *args: Any,
    **kwargs: Any,
) -> mx.array:
    """Rotate x [1, heads, N, head_dim].

    `mx.fast.rope` takes one offset per batch row, so the node axis becomes the batch axis.
    """
    if not isinstance(offset, mx.array) or offset.ndim == 0:
        return plain(self, x, offset, *args, **kwargs)
    rotated = plain(self, x.transpose(2, 1, 0, 3), offset, *args, **kwargs)  # [N, heads, 1, ..]
    return rotated.transpose(2, 1, 0, 3)

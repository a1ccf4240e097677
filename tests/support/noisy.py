"""A GPU's rounding on a CPU: every product differs a little with the rows that run together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.target.hooks import Undo, wrap_method

STEP = 2.0**-9  # relative: half a step of bfloat16


@contextmanager
def noise_on(model: nn.Module, scale: float = STEP) -> Iterator[None]:
    """Let every linear layer of a model round otherwise from call to call.

    Args:
        model: changed while the context is open.
        scale: the largest relative error of a number.
    """
    mx.random.seed(7)
    undo: list[Undo] = []
    for _, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            undo.append(wrap_method(module, "__call__", _noisy(scale)))
    try:
        yield
    finally:
        while undo:
            undo.pop()()


def _noisy(scale: float) -> Any:
    def call(plain: Any, self: nn.Module, x: mx.array) -> mx.array:
        out = plain(self, x)
        error = mx.random.uniform(-scale, scale, out.shape)
        return (out.astype(mx.float32) * (1 + error)).astype(out.dtype)

    return call

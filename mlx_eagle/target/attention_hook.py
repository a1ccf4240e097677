"""The attention function that a model's code calls, replaced while another one serves the call.

mlx-lm's models import it by name into their own modules, so it is replaced there, for all models of
an architecture; a replacement that does not want a call leaves it to the function before it.
"""

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.target.hooks import Undo

NAME = "scaled_dot_product_attention"

# Given what attention is, queries [1, H, N, D], keys, values and mask; None leaves it to mlx-lm.
Attend = Callable[[Heads, mx.array, Any, Any, Any], mx.array | None]


def wrap_attention(model: nn.Module, attend: Attend) -> list[Undo]:
    """Let `attend` serve the attention of a model.

    Args:
        model: of mlx-lm.
        attend: is asked at every call.

    Returns:
        What takes it off again.
    """
    names = {type(module).__module__ for _, module in model.named_modules()}
    places = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    return [_replace(place, attend) for place in places if hasattr(place, NAME)]


class _Replacement:
    """A function in place of another one, which it calls where it does not serve a call itself."""

    def __init__(self, before: Callable[..., mx.array], attend: Attend) -> None:
        self.before, self.is_on = before, True
        self._attend = attend

    def __call__(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Return the attention; the arguments are those of mlx-lm's function."""
        if self.is_on and sinks is None and queries.shape[0] == 1:
            heads = _heads(queries, keys, values, cache, scale)
            found = None if heads is None else self._attend(heads, queries, keys, values, mask)
            if found is not None:
                return found
        rest = {"cache": cache, "scale": scale, "mask": mask, "sinks": sinks}
        return self.before(queries, keys, values, **rest)


def _replace(place: Any, attend: Attend) -> Undo:
    """Replace the function in one module."""
    replacement = _Replacement(getattr(place, NAME), attend)
    setattr(place, NAME, replacement)

    def undo() -> None:
        replacement.is_on = False
        top = getattr(place, NAME)
        while isinstance(top, _Replacement) and not top.is_on:
            top = top.before
        setattr(place, NAME, top)

    return undo


def _heads(queries: mx.array, keys: Any, values: Any, cache: Any, scale: float) -> Heads | None:
    """Return what attention this is; None where keys and values are of different kinds."""
    packing = (cache.bits, cache.group_size) if hasattr(cache, "bits") else (16, 0)
    of_keys, of_values = (rows[1] if packing[1] else rows for rows in (keys, values))
    if of_keys.shape != of_values.shape or of_keys.dtype != queries.dtype:
        return None
    dtype = str(queries.dtype).removeprefix("mlx.core.")
    return Heads(
        queries.shape[1], of_keys.shape[1], queries.shape[3], dtype, float(scale), *packing
    )

"""The attention function that a model's code calls, replaced while another one serves the call.

mlx-lm's models import it by name into their own modules, so it is replaced there, for all models of
an architecture; a replacement that does not want a call leaves it to the function before it.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.target.hooks import Undo

NAME = "scaled_dot_product_attention"


class Call(NamedTuple):
    """A call of mlx-lm's function.

    Attributes:
        queries: [B, H, N, D].
        keys: [B, Hk, T, D], or three arrays that `mx.quantize` gave.
        values: likewise.
        cache: of the layer; one that is quantized says how.
        scale: of scores.
        mask: as mlx-lm makes them: an array, "causal" or None.
        sinks: of the layer, or None.
    """

    queries: mx.array
    keys: Any
    values: Any
    cache: Any
    scale: float
    mask: Any
    sinks: mx.array | None

    @property
    def heads(self) -> Heads | None:
        """What attention this is; None where it is none that a kernel could serve."""
        shape, packing = self.queries.shape, (16, 0)
        if self.sinks is not None or shape[0] != 1:
            return None
        of_keys, of_values = self.keys, self.values
        if isinstance(of_keys, tuple):
            packing = self.cache.bits, self.cache.group_size
            of_keys, of_values = of_keys[1], of_values[1]  # the scales
        if of_keys.shape != of_values.shape or of_keys.dtype != self.queries.dtype:
            return None
        dtype = str(of_keys.dtype).removeprefix("mlx.core.")
        return Heads(shape[1], of_keys.shape[1], shape[3], dtype, float(self.scale), *packing)


Attend = Callable[..., mx.array | None]  # given the parts of a `Call`; None leaves it to mlx-lm


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
        if self.is_on:
            found = self._attend(queries, keys, values, cache, scale, mask, sinks)
            if found is not None:
                return found
        return self.before(queries, keys, values, cache, scale, mask, sinks)


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

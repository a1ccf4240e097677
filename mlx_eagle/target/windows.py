"""Sliding windows: which layers a configuration gives one, and which of them the model keeps.

Some of mlx-lm's classes let every layer attend to the whole text. Up to the length of the window
that is the same, so a context that is no longer makes it right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

LONGEST = 1 << 14  # tokens: masks beyond take too much memory to look at
WINDOWED = ("sliding_attention", "chunked_attention")


def announced_window(config: dict[str, Any]) -> tuple[int, list[bool] | None] | None:
    """Return the window that a configuration gives to layers; None if there is none.

    Args:
        config: of the language model.

    Returns:
        Its size in tokens and, by layer, whether it has one; None for all layers.
    """
    size = config.get("sliding_window") or config.get("attention_chunk_size")
    if type(size) is not int or size < 1 or config.get("use_sliding_window") is False:
        return None
    windowed = _windowed_layers(config)
    return (size, windowed) if windowed is None or any(windowed) else None


def _windowed_layers(config: dict[str, Any]) -> list[bool] | None:
    """Return by layer whether it has the window; None if a configuration does not tell."""
    kinds, n_layers = config.get("layer_types"), config.get("num_hidden_layers")
    if isinstance(kinds, list):
        return [kind in WINDOWED for kind in kinds]
    period = config.get("sliding_window_pattern")  # every so many layers one sees all
    if type(period) is int and period > 0 and type(n_layers) is int:
        return [(layer + 1) % period != 0 for layer in range(n_layers)]
    return None


def unkept_window(network: nn.Module, config: dict[str, Any]) -> int | None:
    """Return the announced window if the model does not keep it just where it is announced.

    The graph of a text that is a little longer is built, and only its masks are computed.

    Args:
        network: the model.
        config: of the language model.
    """
    announced = announced_window(config)
    if announced is None:
        return None
    size, layers = announced
    if size >= int(config.get("max_position_embeddings") or size + 1):
        return None
    if size > LONGEST:
        return None if _reads_window(network) else size
    n_tokens = size + 2
    with _noted_masks() as masks:
        network(mx.zeros((1, n_tokens), dtype=mx.int32), cache=make_prompt_cache(network))
    kept = [_hides_first(mask) for mask in masks]
    expected = [True] * len(network.layers) if layers is None else layers
    is_kept = kept == expected or (len(kept) != len(expected) and sum(kept) == sum(expected) > 0)
    return None if is_kept else size


def _reads_window(network: nn.Module) -> bool:
    """Say whether a model has read the size of a window from its configuration."""
    holders = (getattr(m, "args", None) or getattr(m, "config", None) for m in network.modules())
    return any(getattr(holder, "sliding_window", None) for holder in holders)


@contextmanager
def _noted_masks() -> Iterator[list[Any]]:
    """Note the masks that attention is called with, in order."""
    plain, masks = mx.fast.scaled_dot_product_attention, []

    def noting(*args: Any, **kwargs: Any) -> mx.array:
        masks.append(kwargs.get("mask"))
        return plain(*args, **kwargs)

    mx.fast.scaled_dot_product_attention = noting
    try:
        yield masks
    finally:
        mx.fast.scaled_dot_product_attention = plain


def _hides_first(mask: Any) -> bool:
    """Say whether the last token of a mask does not see the first."""
    if not isinstance(mask, mx.array):
        return False
    entry = mask.reshape(-1, *mask.shape[-2:])[0, -1, 0]
    return bool((mx.logical_not(entry) if mask.dtype == mx.bool_ else entry < -1e3).item())

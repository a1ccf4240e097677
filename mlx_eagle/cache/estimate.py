"""What a target's cache will take and what the machine has, before anything is loaded."""

import os
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_eagle.files.json_files import language_config
from mlx_eagle.load_options import LoadOptions

SHARE = 0.75  # of the machine's memory, where the device does not say what it can use
GROWING = ("attention", "full_attention", "global", "sliding_attention", "chunked_attention")


def device_memory() -> int:
    """Return the bytes that MLX can use without the machine swapping."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if isinstance(recommended, int) and recommended > 0:
        return recommended
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def number_bytes() -> int:
    """Return the bytes of a number that is not quantized: a CPU computes in float32."""
    return 4 if mx.default_device() == mx.cpu else 2


def estimated_cache_bytes(config: Mapping[str, Any], rows: int, options: LoadOptions) -> int:
    """Return about what a target's cache of so many tokens takes, by its config.json alone.

    Layers that keep a state of fixed size count nothing, those with a sliding window no more than
    that. Latent attention keeps one compressed row.
    """
    facts = language_config(dict(config))
    numbers = sum(
        _row_numbers(facts) * min(rows, most) for most in _most_rows(facts, rows, options)
    )
    if options.kv_bits is None:
        return numbers * number_bytes()
    scales = 2 * number_bytes() / options.kv_group_size  # a scale and a bias for every group
    return int(numbers * (options.kv_bits / 8 + scales))


def _row_numbers(facts: dict[str, Any]) -> int:
    """Return the numbers of one token in one layer: a key and a value for every head."""
    latent = _size(facts, "kv_lora_rank")
    if latent:
        return latent + _size(facts, "qk_rope_head_dim")
    heads = _size(facts, "num_attention_heads", "n_head", "n_heads") or 1
    width = _size(facts, "head_dim") or _size(facts, "hidden_size", "n_embd", "d_model") // heads
    return 2 * (_size(facts, "num_key_value_heads", "num_kv_heads") or heads) * width


def _most_rows(facts: dict[str, Any], rows: int, options: LoadOptions) -> list[int]:
    """Return the rows that each layer with rows keeps at most."""
    n_layers = _size(facts, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    most = options.max_kv_size or rows
    types, every = facts.get("layer_types"), _size(facts, "full_attention_interval")
    if isinstance(types, list):
        window = _size(facts, "sliding_window") or most
        kept = [str(kind) for kind in types if str(kind) in GROWING]
        return [min(most, window) if kind.startswith("sliding") else most for kind in kept]
    return [most] * (n_layers // every if every else n_layers)


def _size(facts: dict[str, Any], *names: str) -> int:
    """Return the first of some sizes that the configuration has; 0 if it has none."""
    values = [facts.get(name) for name in names]
    return next((value for value in values if type(value) is int and value > 0), 0)

"""What a target's cache will take and what the machine has, before anything is loaded."""

import os
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_eagle.files.json_files import language_config
from mlx_eagle.load_options import LoadOptions

SHARE = 0.75  # of the machine's memory, where the device does not say what it can use
DEEPEST = 10_000  # layers
LONGEST_WINDOW = 2048  # tokens; the most that a head attends to unless it attends to all
FIXED = ("linear", "lightning")  # kinds of attention whose state does not grow
LATENT_IN_FULL = ("deepseek_v2", "minicpm3")  # mlx-lm keeps their keys and values uncompressed


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

    It goes by what configurations say of attention, windows and recurrent layers under the names
    that are common; where they say nothing every layer counts in full, which is too much rather
    than too little.
    """
    facts = language_config(dict(config))
    layers = _most_rows(facts, options.max_kv_size or rows)
    numbers = _row_numbers(facts) * sum(min(rows, most) for most in layers)
    if options.kv_bits is None:
        return numbers * number_bytes()
    scales = 2 * number_bytes() / options.kv_group_size  # a scale and a bias for every group
    return int(numbers * (options.kv_bits / 8 + scales))


def estimated_head_bytes(config: Mapping[str, Any], rows: int, options: LoadOptions) -> int:
    """Return about what the cache of a head takes: that of one layer of its target.

    Heads that attend to few tokens take less. Whether one does shows only in its own files.
    """
    bounds = [rows, options.head_window or rows]
    if options.max_kv_size is not None:
        bounds.append(max(options.max_kv_size, LONGEST_WINDOW))
    return _row_numbers(language_config(dict(config))) * min(bounds) * number_bytes()


def _row_numbers(facts: dict[str, Any]) -> int:
    """Return the numbers of one token in one layer: a key and a value for every head."""
    heads = _size(facts, "num_attention_heads", "n_head", "n_heads")
    latent, rotated = _size(facts, "kv_lora_rank"), _size(facts, "qk_rope_head_dim")
    if latent and facts.get("model_type") in LATENT_IN_FULL:
        return heads * (_size(facts, "qk_nope_head_dim") + rotated + _size(facts, "v_head_dim"))
    if latent or not heads:
        return latent + rotated
    width = _size(facts, "head_dim") or _size(facts, "hidden_size", "n_embd", "d_model") // heads
    return 2 * (_size(facts, "num_key_value_heads", "num_kv_heads") or heads) * width


def _most_rows(facts: dict[str, Any], most: int) -> list[int]:
    """Return the rows that each layer with rows keeps at most."""
    n_layers = min(_size(facts, "num_hidden_layers", "n_layer", "n_layers", "num_layers"), DEEPEST)
    window = min(most, _size(facts, "sliding_window", "attention_window_size") or most)
    if (kinds := _kinds(facts)) is not None:
        growing = [kind.lower() for kind in kinds if kind == "*" or "attention" in kind.lower()]
        kept = [kind for kind in growing if not kind.startswith(FIXED)]
        return [window if kind.startswith(("sliding", "local")) else most for kind in kept]
    if every := _size(facts, "full_attention_interval", "attn_layer_period"):
        return [most] * (n_layers // every)
    if period := _size(facts, "sliding_window_pattern"):
        return [most if n % period == period - 1 else window for n in range(n_layers)]
    return [most] * n_layers


def _kinds(facts: dict[str, Any]) -> list[str] | None:
    """Return what each layer is, where the configuration lists them."""
    for name in ("layer_types", "layers_block_type", "block_types", "hybrid_override_pattern"):
        value = facts.get(name)
        if isinstance(value, str | list) and value:
            return [str(kind) for kind in value]
    return None


def _size(facts: dict[str, Any], *names: str) -> int:
    """Return the first of some sizes that the configuration has; 0 if it has none."""
    values = [facts.get(name) for name in names]
    return next((value for value in values if type(value) is int and value > 0), 0)

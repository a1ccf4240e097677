"""What a cache will take, by config.json: compared with caches of targets that were built."""

from collections.abc import Callable
from typing import Any

import pytest

from mlx_eagle.cache.estimate import device_memory, estimated_cache_bytes, number_bytes
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.session.limits import Limits, bytes_per_row
from mlx_eagle.target.target import Target
from tiny_models import ARCHITECTURES, SMALL

PLAIN = LoadOptions()


def config_of(architecture: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": architecture} | SMALL | ARCHITECTURES[architecture] | changes


def real_bytes(model: Any, rows: int, kv: KVOptions | None = None) -> int:
    target = Target(model)
    if kv is not None:
        target.kv = kv
    return Limits(bytes_per_row=bytes_per_row(target)).cache_bytes(rows)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3_moe", "gemma2", "phi3", "glm4", "granite", "smollm3"]
)
def test_the_estimate_is_what_the_cache_of_the_built_target_takes(
    architecture: str, tiny_target: Callable[..., Any]
) -> None:
    real = real_bytes(tiny_target(architecture), 300)
    assert real > 0
    assert estimated_cache_bytes(config_of(architecture), 300, PLAIN) == real


def test_fewer_bits_and_fewer_rows_take_less(tiny_target: Callable[..., Any]) -> None:
    sizes = {"head_dim": 64}
    model, config = tiny_target("llama", **sizes), config_of("llama", **sizes)
    whole = estimated_cache_bytes(config, 1000, PLAIN)
    eight = LoadOptions(kv_bits=8, kv_group_size=64)
    real = real_bytes(model, 1000, KVOptions(bits=8, group_size=64))
    assert estimated_cache_bytes(config, 1000, eight) == real < whole
    few = estimated_cache_bytes(config, 1000, LoadOptions(max_kv_size=100))
    assert few == estimated_cache_bytes(config, 100, PLAIN)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ROW = 2 * 2 * 16 * number_bytes()


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention", "conv"], "sliding_window": 10},
            110,
        ),
        ({"layer_types": ["linear_attention", "lightning_attention", "mamba", "attention"]}, 100),
        ({"layers_block_type": ["mamba", "attention"]}, 100),
        ({"hybrid_override_pattern": "M-M*M*"}, 200),
        ({"num_hidden_layers": 8, "full_attention_interval": 4}, 200),
        ({"num_hidden_layers": 6, "sliding_window_pattern": 3, "sliding_window": 10}, 240),
        ({"num_hidden_layers": 2}, 200),
        ({"num_hidden_layers": 10**30, "num_key_value_heads": 2}, 10_000 * 100),
    ],
)
def test_layers_that_do_not_grow_count_as_they_are(config: dict[str, Any], rows: int) -> None:
    assert estimated_cache_bytes({"text_config": HEADS | config}, 100, PLAIN) == ROW * rows


def test_latent_attention_and_models_without_attention() -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    latent = sizes | {"kv_lora_rank": 32, "qk_rope_head_dim": 8}
    assert estimated_cache_bytes(latent, 100, PLAIN) == 2 * 100 * 40 * number_bytes()
    full = latent | {"model_type": "deepseek_v2", "qk_nope_head_dim": 16, "v_head_dim": 20}
    assert estimated_cache_bytes(full, 10, PLAIN) == 2 * 10 * 4 * (24 + 20) * number_bytes()
    assert estimated_cache_bytes({"num_hidden_layers": 2, "hidden_size": 64}, 100, PLAIN) == 0
    gpt2 = {"n_layer": 2, "n_head": 4, "n_embd": 64}
    assert estimated_cache_bytes(gpt2, 10, PLAIN) == 2 * 10 * 2 * 64 * number_bytes()


def test_this_machine_has_some_memory() -> None:
    assert 10**9 < device_memory() < 10**13

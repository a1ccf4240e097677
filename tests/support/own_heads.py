"""Random heads in our own format for a target of which only the configuration exists."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE, HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from tiny_models import tiny_head_config

H, V, W, N = 16, 24, 10, 12
TARGET: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": H,
    "num_hidden_layers": N,
    "vocab_size": V,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN |= {"truncate": False, "beta_fast": 16.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
BIASED = {"attention_bias": True, "attention_output_bias": True}
WIDE = {"hidden_size": 2 * H, "own_embedding": True}
PLAIN = replace(
    tiny_head_config(),
    hidden_size=H,
    target_hidden_size=H,
    target_vocab_size=V,
    draft_vocab_size=W,
    intermediate_size=20,
    head_dim=4,
    rope_dims=4,
    max_position_embeddings=256,
    taps=(2, 6, 9),
)
EAGLE = replace(
    PLAIN,
    algorithm="eagle",
    draft_vocab_size=V,
    taps=(N + 1,),
    **dict.fromkeys(
        ("fuse_taps", "input_layernorm", "hidden_norm", "final_norm", "own_lm_head"), False
    ),
)
PARALLEL = replace(PLAIN, algorithm="p-eagle", own_embedding=True, mask_token_id=V - 1)


def write_head(
    folder: Path, config: HeadConfig, *, ids: list[int] | None = None, **more: Any
) -> Path:
    """Write a random head in our own format, and its target's configuration beside it."""
    head = EagleHead(config)
    mx.random.seed(1)
    dtype = more.pop("dtype", mx.bfloat16)
    weights = {
        n: mx.random.normal(a.shape).astype(dtype) for n, a in tree_flatten(head.parameters())
    }
    size = config.draft_vocab_size
    # Every other id, and from there on the next ones: ascending, and no run from 0.
    chosen = list(range(size)) if size == V else [1, 3, 5, *range(7, 7 + size - 3)]
    weights["draft_to_target"] = mx.array(chosen if ids is None else ids, dtype=mx.int32)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    target = {"name": "target", "config_sha256": "", "rope_theta": None}
    about = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION, "quantization": None}
    about |= {"target": target | {k: v for k, v in TARGET.items() if k != "architectures"}}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | about | more))
    return folder


def write_target(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TARGET | changes))
    return folder


def name_of(part: Any) -> str:
    """Return a short name for a part of a test case."""
    return part.algorithm if isinstance(part, HeadConfig) else str(part)

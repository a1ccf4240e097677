"""Tiny random targets of mlx-lm's own architectures, and the config of a tiny head."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import HeadConfig

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

# What each architecture needs beyond SMALL. The windows are shorter than the prompts of the tests.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "sliding_window": 8,
    },
    "gemma2": {"query_pre_attn_scalar": 16.0},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "phi3": {},
    "cohere": {"layer_norm_eps": 1e-5},
    "olmo2": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
    },
    "smollm3": {},
}


def build_target(architecture: str, **overrides: Any) -> nn.Module:
    """Build a tiny random float32 model with one of mlx-lm's own architectures."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    config = {"model_type": architecture} | SMALL | ARCHITECTURES.get(architecture, {}) | overrides
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    # mlx starts gpt-oss' sinks and all norms at constants; random ones hide fewer mistakes.
    noisy = [
        (name, value + 0.1 * mx.random.normal(value.shape)) if value.ndim == 1 else (name, value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(noisy)
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def tiny_head_config() -> HeadConfig:
    """Return the config of a head whose forward pass can be followed by hand."""
    return HeadConfig(
        algorithm="eagle3",
        hidden_size=32,
        target_hidden_size=32,
        target_vocab_size=64,
        draft_vocab_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_interleaved=False,
        rope_dims=8,
        max_position_embeddings=512,
        sliding_windows=(None,),
        taps=(1, 2, 3),
        fuse_taps=True,
        norm_before_fc=False,
        fc_norm=False,
        input_layernorm=True,
        hidden_norm=True,
        double_norm=False,
        norm_before_residual=False,
        norm_output=False,
        final_norm=True,
        qk_norm=False,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        fc_bias=False,
        own_embedding=False,
        own_lm_head=True,
        mask_token_id=None,
    )

"""The metadata of a GGUF file as a config.json that mlx-lm and transformers read."""

from collections.abc import Callable
from typing import Any

from mlx_eagle.convert.gguf.families import Family
from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.names import EMBEDDING, OUTPUT
from mlx_eagle.convert.gguf.reader import GGUF
from mlx_eagle.convert.gguf.rope import rope_facts
from mlx_eagle.errors import CheckpointError

MAX_LAYERS = 1000
# Layers of the sizes whose queries are scaled by width and heads, not by a head's dimensions:
# no key says so, and llama.cpp goes by the number of layers as well.
_LARGE_GEMMA = {"gemma2": 46, "gemma3_text": 62}


def make_config(gguf: GGUF, family: Family, metadata: Metadata) -> dict[str, Any]:
    """Return the configuration of a model, but for tokens and the types of its weights.

    Args:
        gguf: the file.
        family: which it is of.
        metadata: of its architecture.

    Raises:
        CheckpointError: if a fact is missing, malformed or not known.
    """
    if EMBEDDING not in gguf.tensors:
        raise CheckpointError(f"{gguf.name} has no {EMBEDDING}")
    sizes = _sizes(gguf, metadata)
    config = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **sizes,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": metadata.count("context_length"),
        "tie_word_embeddings": family.tied or OUTPUT not in gguf.tensors,
        **rope_facts(gguf, metadata, sizes["head_dim"]),
    }
    if metadata.has("attention.sliding_window"):
        config["sliding_window"] = metadata.count("attention.sliding_window")
    own = _OWN.get(family.model_type)
    return config | (own(gguf, metadata, config) if own else {})


def _sizes(gguf: GGUF, metadata: Metadata) -> dict[str, int]:
    """Return the sizes that every family has."""
    width, n_heads = metadata.count("embedding_length"), metadata.count("attention.head_count")
    head_dim = metadata.count("attention.key_length", max(width // n_heads, 1))
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": metadata.count("block_count"),
        "intermediate_size": metadata.count("feed_forward_length", 1),
        "num_attention_heads": n_heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "vocab_size": gguf.tensors[EMBEDDING].shape[0],
    }
    if sizes["num_hidden_layers"] > MAX_LAYERS:
        raise CheckpointError(f"{gguf.name} claims more than {MAX_LAYERS} layers")
    if metadata.count("attention.value_length", head_dim) != head_dim or head_dim % 2:
        raise CheckpointError(
            f"{gguf.name} has keys of {head_dim} dimensions: an even number is needed, and values "
            "of as many"
        )
    return sizes


def _llama(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return which layers have biases."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in gguf.tensors,
        "hidden_act": "silu",
    }


def _qwen2(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return the activation, once heads are as wide as the class takes for granted."""
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise CheckpointError(
            f"{gguf.name} is a {config['model_type']} with heads of another width"
        )
    return {"hidden_act": "silu"}


def _qwen3_moe(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return how many experts there are; llama.cpp's graph always normalizes their weights."""
    return {
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
        "moe_intermediate_size": metadata.count("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "attention_bias": False,
        "hidden_act": "silu",
    }


def _gemma(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return by what queries are scaled, and the activation."""
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == _LARGE_GEMMA[config["model_type"]]:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    activation = "gelu_pytorch_tanh"
    return {
        "query_pre_attn_scalar": scalar,
        "hidden_activation": activation,
        "hidden_act": activation,
        "attention_bias": False,
    }


def _gemma2(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return where scores and logits are capped."""
    return _gemma(gguf, metadata, config) | {
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def _gemma3(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return which layers see a window, and how those rotate: never scaled."""
    if metadata.has("final_logit_softcapping"):
        raise CheckpointError(f"{gguf.name} is a gemma3 with capped logits, which mlx-lm lacks")
    pattern = metadata.count("attention.sliding_window_pattern", 6)
    return _gemma(gguf, metadata, config) | {
        "sliding_window": metadata.count("attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "rope_theta": metadata.number("rope.freq_base", 1e6),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 1e4),
    }


def _phi3(gguf: GGUF, metadata: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    """Return what has to stand in the configuration of every phi3."""
    key = "original_max_position_embeddings"
    return _qwen2(gguf, metadata, config) | {
        key: config.get(key, config["max_position_embeddings"])
    }


_OWN: dict[str, Callable[[GGUF, Metadata, dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
}

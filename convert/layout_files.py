"""A head as its publisher would write it: the keys of `config.json` and the names of tensors.

It writes down what it is told; whether the layout can say all of it is decided in
`publisher_layouts.py`.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_eagle.convert.dialects import BOUNDARY_KEY
from mlx_eagle.convert.taps import default_taps
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.heads.config import HeadConfig

DRAFTED = 3  # tokens that vLLM is told to draft, where its user says nothing
_VERSION = "0.9.0"  # of the library speculators that the layout was compared with


def layout_tensors(
    layout: str, head: HeadConfig, weights: dict[str, mx.array]
) -> dict[str, mx.array]:
    """Return the parameters of an `EagleHead` under the names of a layout.

    Args:
        layout: one of `publisher_layouts.LAYOUTS`.
        head: the facts about it.
        weights: its parameters by our names; the draft ids [W] int32 are among them.
    """
    tensors = dict(weights)
    ids = np.array(tensors.pop("draft_to_target"))
    if "mask_hidden" in tensors:
        tensors["mask_hidden"] = tensors["mask_hidden"][None, None]  # [1, 1, A * D]
    if head.algorithm == "eagle":
        return tensors
    if layout != "speculators":
        tensors = {_midlayer(name): array for name, array in tensors.items()}
    if layout != "speculators" or head.draft_vocab_size != head.target_vocab_size:
        offsets = ids.astype(np.int64) - np.arange(len(ids))
        marks = np.isin(np.arange(head.target_vocab_size), ids)
        tensors |= {"d2t": mx.array(offsets), "t2d": mx.array(marks)}
    return tensors


def _midlayer(name: str) -> str:
    return f"midlayer.{name.removeprefix('layers.0.')}" if name.startswith("layers.0.") else name


def layout_config(
    layout: str, head: HeadConfig, target: TargetFacts, verifier: dict[str, Any], dtype: str
) -> dict[str, Any]:
    """Return the `config.json` of a head in a layout.

    Args:
        layout: one of `publisher_layouts.LAYOUTS`.
        head: the facts about it.
        target: what it drafts for.
        verifier: what the target is called there: `name_or_path` and `architectures`.
        dtype: of the weights, such as "bfloat16".
    """
    if layout == "speculators":
        return _speculators_config(head, verifier, dtype)
    config = _layer_config(head) | {"torch_dtype": dtype}
    if head.algorithm == "eagle":
        biases = {"bias": head.fc_bias, "qkv_bias": head.attention_bias}
        return {"architectures": ["LlamaForCausalLM"]} | config | biases
    config["draft_vocab_size"] = head.draft_vocab_size
    if head.own_embedding:
        config["target_hidden_size"] = head.target_hidden_size
    if layout == "safeailab":
        return {"architectures": ["LlamaForCausalLM"]} | _with_linear_type(config)
    config["target_model_type"] = target.model_type
    if head.fc_norm:
        config |= {"fc_norm": True, "norm_output": head.norm_output}
    if head.taps != default_taps(target.num_hidden_layers):
        config["eagle_config"] = {BOUNDARY_KEY: [b - 1 for b in head.taps]}
    return {"architectures": ["LlamaForCausalLMEagle3"]} | config


def _with_linear_type(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose rope scaling has the older name of its kind."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return config
    older = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    return config | {"rope_scaling": older}


def _layer_config(head: HeadConfig) -> dict[str, Any]:
    """Return the sizes and the rope under Hugging Face's names."""
    return {
        "model_type": "llama",
        "hidden_size": head.hidden_size,
        "intermediate_size": head.intermediate_size,
        "num_attention_heads": head.num_attention_heads,
        "num_key_value_heads": head.num_key_value_heads,
        "head_dim": head.head_dim,
        "num_hidden_layers": head.num_hidden_layers,
        "hidden_act": "silu",
        "max_position_embeddings": head.max_position_embeddings,
        "rms_norm_eps": head.rms_norm_eps,
        "rope_theta": head.rope_theta,
        "rope_scaling": head.rope_scaling,
        "vocab_size": head.target_vocab_size,
        "tie_word_embeddings": False,
    }


def _speculators_config(head: HeadConfig, verifier: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the configuration that vLLM and the library read."""
    is_parallel = head.algorithm == "p-eagle"
    kind = "peagle" if is_parallel else "eagle3"
    is_wide = head.hidden_size != head.target_hidden_size
    config: dict[str, Any] = {
        "architectures": ["PEagleDraftModel" if is_parallel else "Eagle3DraftModel"],
        "speculators_model_type": kind,
        "speculators_version": _VERSION,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": DRAFTED}],
            "verifier": verifier,
        },
        "draft_vocab_size": head.draft_vocab_size,
        "target_hidden_size": head.target_hidden_size if is_wide else None,
        BOUNDARY_KEY: list(head.taps),
        "embed_requires_grad": is_parallel,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformer_layer_config": _speculators_layer(head),
    }
    for flag in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"):
        config[flag] = getattr(head, flag)
    return config | ({"mask_token_id": head.mask_token_id} if is_parallel else {})


def _speculators_layer(head: HeadConfig) -> dict[str, Any]:
    """Return the nested configuration of the layers, Qwen3's if they norm queries and keys."""
    layer = _layer_config(head)
    layer["model_type"] = "qwen3" if head.qk_norm else "llama"
    layer["attention_bias"] = head.attention_bias
    if not head.qk_norm:
        layer["mlp_bias"] = head.mlp_bias
    windows = [window for window in head.sliding_windows if window]
    if windows:
        kinds = ["sliding_attention" if w else "full_attention" for w in head.sliding_windows]
        layer |= {"layer_types": kinds, "sliding_window": windows[0], "use_sliding_window": True}
    return layer

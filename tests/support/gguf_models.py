"""Tiny random models of transformers, written as GGUF files as llama.cpp's converter writes them.

Names of tensors are those of the package gguf's own table; what the converter does to values (rows
of heads interleaved, 1 added to norms) is done here. Logits are PyTorch's on what the file holds.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from gguf_files import Array, File, byte_level, stored, write

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
THETA: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e4}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
YARN["original_max_position_embeddings"] = 64


class Made(NamedTuple):
    """How a family is made.

    Attributes:
        class_name: of transformers, without Config and ForCausalLM.
        architecture: llama.cpp's name.
        changes: to the sizes.
    """

    class_name: str
    architecture: str
    changes: dict[str, Any]


GEMMA3 = {
    **{"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 8, "tie_word_embeddings": True},
    **{"query_pre_attn_scalar": 32, "sliding_window_pattern": 6},
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
EXPERTS = {
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32},
    **{"norm_topk_prob": True, "rope_parameters": THETA},
}
FAMILIES = {
    "llama": Made("Llama", "llama", {"rope_parameters": THETA}),
    "llama3, tied": Made(
        "Llama", "llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 32}
    ),
    "llama with biases": Made("Llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Made("Mistral", "llama", {"rope_parameters": THETA, "sliding_window": None}),
    "qwen2": Made("Qwen2", "qwen2", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "qwen2 with yarn": Made("Qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen3": Made("Qwen3", "qwen3", {"rope_parameters": THETA, "head_dim": 32}),
    "qwen3_moe": Made("Qwen3Moe", "qwen3moe", EXPERTS),
    "gemma2": Made(
        "Gemma2",
        "gemma2",
        {
            **{"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64},
            **{"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
            **{"tie_word_embeddings": True, "rope_parameters": THETA},
        },
    ),
    "gemma3": Made("Gemma3", "gemma3", GEMMA3),
    "phi3": Made("Phi3", "phi3", {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}),
    "phi3 with longrope": Made(
        "Phi3",
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 1e4},
                **{"original_max_position_embeddings": 64, "factor": 4.0},
                "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [2.0 + 0.5 * i for i in range(8)],
            },
        },
    ),
}


def make(name: str, file: Path, kind: Kind = Kind.Q8_0) -> Any:
    """Write a model of a family as a GGUF file, and return PyTorch's with the values of the file.

    Args:
        name: of `FAMILIES`.
        file: to write.
        kind: of its matrices.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    transformers = pytest.importorskip("transformers")
    made = FAMILIES[name]
    text = "Text" if made.class_name == "Gemma3" else ""
    config = getattr(transformers, f"{made.class_name}{text}Config")(**(SIZES | made.changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{made.class_name}ForCausalLM")(config).eval()
    tensors: dict[str, tuple[Array, Kind]] = {}
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:  # transformers starts norms and biases at constants
                parameter.add_(0.1 * torch.randn(parameter.shape))
            for place, part in _parts(path, parameter):
                held = kind if _is_matrix(place, part) else Kind.F32
                values = part.detach().numpy()
                data, _ = stored(values, held)
                if held != Kind.F32:
                    values = gguf.quants.dequantize(data, held)
                    part.copy_(torch.from_numpy(values.reshape(part.shape)))
                tensors |= _as_converted(made, config, place, part.detach().numpy(), held)
    tensors |= _rope_tensors(config)
    write(file, File(made.architecture, lambda w: _facts(w, made, config), tensors, byte_level))
    return model


def _parts(path: str, parameter: Any) -> list[tuple[str, Any]]:
    """Return a parameter under its published names: transformers fuses experts, files do not."""
    if path.endswith("experts.gate_up_proj"):
        half, stem = parameter.shape[1] // 2, path.removesuffix("gate_up_proj")
        return [
            (f"{stem}gate_proj.weight", parameter[:, :half]),
            (f"{stem}up_proj.weight", parameter[:, half:]),
        ]
    return [(path if path.endswith((".weight", ".bias")) else f"{path}.weight", parameter)]


def _is_matrix(place: str, part: Any) -> bool:
    """Say whether llama.cpp quantizes a tensor: routers it does not."""
    return bool(part.ndim > 1) and not place.endswith("mlp.gate.weight")


def _as_converted(
    made: Made, config: Any, place: str, values: Array, kind: Kind
) -> dict[str, tuple[Array, Kind]]:
    """Return a tensor by its name in a GGUF file, changed as llama.cpp's converter changes it."""
    architecture = next(n for n, text in gguf.MODEL_ARCH_NAMES.items() if text == made.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    name = names.get_name(place, try_suffixes=(".weight", ".bias"))
    assert name is not None, place
    if made.architecture == "llama" and ".q_proj." in place:
        values = _interleaved(values, config.num_attention_heads)
    if made.architecture == "llama" and ".k_proj." in place:
        values = _interleaved(values, config.num_key_value_heads)
    if made.architecture.startswith("gemma") and place.endswith("norm.weight"):
        values = values + 1
    return {name: stored(values, kind)}


def _interleaved(values: Array, n_heads: int) -> Array:
    """Return rows in llama.cpp's order: of each head, those of both halves in turn."""
    halves = values.reshape(n_heads, 2, len(values) // n_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _rope_tensors(config: Any) -> dict[str, tuple[Array, Kind]]:
    """Return the factors of a rope that are tensors in a file."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        both = {"long": rope["long_factor"], "short": rope["short_factor"]}
        return {
            f"rope_factors_{kind}.weight": (np.array(factors, np.float32), Kind.F32)
            for kind, factors in both.items()
        }
    if rope.get("rope_type") != "llama3":
        return {}
    dims = np.arange(0, config.head_dim, 2)
    turns = rope["rope_theta"] ** (dims / config.head_dim) * 2 * np.pi  # tokens for one
    lengths = rope["original_max_position_embeddings"] / turns
    smooth = ((lengths - 1) / (4 - 1)).clip(0, 1)
    factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return {"rope_freqs.weight": (factors.astype(np.float32), Kind.F32)}


def _facts(writer: gguf.GGUFWriter, made: Made, config: Any) -> None:
    """Write what a file says of a model."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if made.architecture not in ("phi3", "qwen2"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if made.architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if made.architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _rope_facts(writer, config, head_dim)


def _rope_facts(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    """Write what a file says of a rope."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])

"""The architectures of GGUF files that are converted, and what their tensors are called in MLX.

A family is named as llama.cpp names it in `general.architecture`, where Mistral's models are llama;
others are refused by name. How llama.cpp's converter changes values is undone: it interleaves the
rows of llama's queries and keys, and adds 1 to gemma's norms.
"""

from typing import NamedTuple

from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.reader import GGUF
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote

# Tensors of a layer, without `blk.N.` and `model.layers.N.`, and without .weight and .bias.
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_DENSE = _ATTENTION | {"ffn_norm": "post_attention_layernorm"} | _FEED_FORWARD
_FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = _ATTENTION | _FEED_FORWARD | _FOUR_NORMS
_EXPERTS = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


class Family(NamedTuple):
    """An architecture.

    Attributes:
        model_type: what transformers and mlx-lm call it.
        class_name: of transformers.
        layer: names of a layer's tensors in a GGUF file, and in MLX.
        has_interleaved_heads: rows of queries and keys have to be put back in order.
        has_raised_norms: 1 has to be taken off its norms.
        tied: its output layer is the embedding, always.
        outgrows_half: its activations are known to be too large for float16.
    """

    model_type: str
    class_name: str
    layer: dict[str, str]
    has_interleaved_heads: bool = False
    has_raised_norms: bool = False
    tied: bool = False
    outgrows_half: bool = False


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", _DENSE, has_interleaved_heads=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _DENSE, outgrows_half=True),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _DENSE | _HEAD_NORMS),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _ATTENTION | _HEAD_NORMS | _EXPERTS),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA,
        has_raised_norms=True,
        tied=True,
        outgrows_half=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA | _HEAD_NORMS,
        has_raised_norms=True,
        outgrows_half=True,
    ),
    "phi3": Family("phi3", "Phi3ForCausalLM", _FUSED),
}

# Facts that change the text and that these families do not have in mlx-lm's classes.
_FOREIGN = (
    *("logit_scale", "residual_scale", "embedding_scale", "attention.scale"),
    *("attention.clamp_kqv", "attention.max_alibi_bias", "attention.temperature_scale"),
    *("attention.temperature_length", "attention.shared_kv_layers", "expert_shared_count"),
    *("expert_weights_scale", "nextn_predict_layers", "leading_dense_block_count"),
)


def find_family(gguf: GGUF) -> tuple[Family, Metadata]:
    """Return which family a file is of, and its metadata.

    Raises:
        CheckpointError: if it is no language model, or of an architecture or with a fact that is
            not known.
    """
    general = Metadata(gguf.metadata, "general")
    kind = general.text("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{gguf.name} holds a {quote(kind)}, not a model")
    name = general.text("general.architecture")
    if name not in FAMILIES:
        raise CheckpointError(
            f"{gguf.name} is of the architecture {quote(name)}; those that are converted are "
            f"{', '.join(FAMILIES)}"
        )
    metadata = Metadata(gguf.metadata, name)
    foreign = [key for key in _FOREIGN if metadata.has(key)]
    if metadata.has("expert_count") and "ffn_gate_exps" not in FAMILIES[name].layer:
        foreign.append("expert_count")
    if foreign:
        raise CheckpointError(
            f"{gguf.name} is a {name} with {', '.join(foreign)}, which changes its text and which "
            f"mlx-lm's {FAMILIES[name].model_type} does not know"
        )
    return FAMILIES[name], metadata

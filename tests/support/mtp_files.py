"""Tiny random checkpoints with a multi-token prediction layer, in every form in which they come.

Tensors are made once, by the names of the publisher's original; each form is written from them.
"""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

H, V, N = 64, 128, 2
QWEN: dict[str, Any] = {
    "hidden_size": H,
    "num_hidden_layers": N,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": V,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "norm_topk_prob": True,
}
GLM: dict[str, Any] = {
    "model_type": "glm4_moe",
    "hidden_size": H,
    "num_hidden_layers": N,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": V,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "use_qk_norm": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "num_nextn_predict_layers": 1,
}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "v_head_dim": 16}
LATENT |= {"qk_nope_head_dim": 8, "num_key_value_heads": 4, "attention_bias": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_5": {
        "model_type": "qwen3_5",
        "text_config": QWEN
        | {"model_type": "qwen3_5_text", "rope_parameters": ROPE, "mtp_num_hidden_layers": 1},
    },
    "qwen3_5_moe": {
        "model_type": "qwen3_5_moe",
        "text_config": QWEN
        | EXPERTS
        | {"model_type": "qwen3_5_moe_text", "rope_parameters": ROPE, "mtp_num_hidden_layers": 1},
    },
    "qwen3_next": QWEN
    | EXPERTS
    | {
        "model_type": "qwen3_next",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.5,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "mimo": {
        "model_type": "mimo",
        **{k: v for k, v in QWEN.items() if not k.startswith("linear_") and k != "head_dim"},
        "rope_theta": 5000.0,
        "num_nextn_predict_layers": 1,
    },
    "glm4_moe": GLM,
    "glm4_moe_lite": {k: v for k, v in GLM.items() if k not in ("head_dim", "use_qk_norm")}
    | LATENT
    | {"model_type": "glm4_moe_lite", "partial_rotary_factor": 1.0},
}
ZERO_CENTRED = ("qwen3_5", "qwen3_5_moe", "qwen3_next")


def text_config(family: str) -> dict[str, Any]:
    """The facts of the language model."""
    config = dict(CONFIGS[family])
    return config | config.pop("text_config", {})


def _attention_shapes(family: str) -> dict[str, tuple[int, ...]]:
    f = text_config(family)
    nh, nkv = f["num_attention_heads"], f["num_key_value_heads"]
    if family == "glm4_moe_lite":
        rank, rope, nope = f["kv_lora_rank"], f["qk_rope_head_dim"], f["qk_nope_head_dim"]
        return {
            "q_a_proj.weight": (f["q_lora_rank"], H),
            "q_a_layernorm.weight": (f["q_lora_rank"],),
            "q_b_proj.weight": (nh * (nope + rope), f["q_lora_rank"]),
            "kv_a_proj_with_mqa.weight": (rank + rope, H),
            "kv_a_layernorm.weight": (rank,),
            "kv_b_proj.weight": (nh * (nope + f["v_head_dim"]), rank),
            "o_proj.weight": (H, nh * f["v_head_dim"]),
        }
    hd = 16
    gate = 2 if family in ZERO_CENTRED else 1
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (gate * nh * hd, H),
        "k_proj.weight": (nkv * hd, H),
        "v_proj.weight": (nkv * hd, H),
        "o_proj.weight": (H, nh * hd),
    }
    if family in ("mimo", "glm4_moe"):
        shapes |= {
            "q_proj.bias": (nh * hd,),
            "k_proj.bias": (nkv * hd,),
            "v_proj.bias": (nkv * hd,),
        }
    if family != "mimo":
        shapes |= {"q_norm.weight": (hd,), "k_norm.weight": (hd,)}
    return shapes


def _mlp_shapes(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{prefix}{name}_proj.weight": (inner, H) for name in ("gate", "up")}
    return shapes | {f"{prefix}down_proj.weight": (H, inner)}


def _inner_shapes(family: str) -> dict[str, tuple[int, ...]]:
    f = text_config(family)
    if family in ("qwen3_5", "mimo"):
        return _mlp_shapes("", f["intermediate_size"])
    n = f.get("num_experts") or f["n_routed_experts"]
    shapes: dict[str, tuple[int, ...]] = {"gate.weight": (n, H)}
    for expert in range(n):
        shapes |= _mlp_shapes(f"experts.{expert}.", f["moe_intermediate_size"])
    if family.startswith("glm"):
        shapes["gate.e_score_correction_bias"] = (n,)
        return shapes | _mlp_shapes("shared_experts.", f["moe_intermediate_size"])
    shapes["shared_expert_gate.weight"] = (1, H)
    return shapes | _mlp_shapes("shared_expert.", f["shared_expert_intermediate_size"])


def random_layer(family: str) -> dict[str, np.ndarray]:
    """The tensors of a layer by Qwen's names without "mtp.", as their publisher stores them."""
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (H, 2 * H)}
    norms = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    shapes |= {f"{name}.weight": (H,) for name in norms}
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (H,),
        "post_attention_layernorm.weight": (H,),
        **{f"self_attn.{name}": shape for name, shape in _attention_shapes(family).items()},
        **{f"mlp.{name}": shape for name, shape in _inner_shapes(family).items()},
    }
    shapes |= {f"layers.0.{name}": shape for name, shape in layer.items()}
    tensors = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape)
        if name.endswith("norm.weight") or "_norm_" in name:
            value = 0.3 * value + (0 if family in ZERO_CENTRED else 1)
        elif len(shape) == 1:  # routers' biases are positive, or masked experts would tie
            value = 0.3 * abs(value)
        else:
            value *= (2.0 if "q_proj" in name or "mlp.gate.weight" in name else 1.0) / shape[
                -1
            ] ** 0.5
        tensors[name] = value.astype(np.float32)
    return tensors


_DEEPSEEK = {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj"}
_DEEPSEEK |= {"norm": "shared_head.norm"}
_MIMO = {"pre_fc_norm_embedding": "token_layernorm", "pre_fc_norm_hidden": "hidden_layernorm"}
_MIMO |= {"fc": "input_proj", "norm": "final_layernorm"}


def published_name(family: str, name: str) -> str:
    """What the publisher calls a tensor of `random_layer`."""
    if family in ZERO_CENTRED:
        return f"mtp.{name}"
    table, prefix = (_MIMO, "model.mtp_layers.0.")
    if family.startswith("glm"):
        table, prefix = _DEEPSEEK, f"model.layers.{N}."
    first, _, rest = name.partition(".")
    return prefix + (f"{table[first]}.{rest}" if first in table else name.removeprefix("layers.0."))


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with all experts in two tensors."""
    found, start = {}, "layers.0.mlp.experts."
    parts = {n: a for n, a in tensors.items() if n.startswith(start)}
    stacks = {}
    for kind in ("gate", "up", "down"):
        n = sum(name.endswith(f"{kind}_proj.weight") for name in parts)
        stacks[kind] = np.stack([parts[f"{start}{i}.{kind}_proj.weight"] for i in range(n)])
    found[f"{start}gate_up_proj"] = np.concatenate([stacks["gate"], stacks["up"]], axis=1)
    found[f"{start}down_proj"] = stacks["down"]
    return {n: a for n, a in tensors.items() if n not in parts} | found


def with_ones(layer: dict[str, np.ndarray], start: str = "") -> dict[str, np.ndarray]:
    """The same with 1 added to the norms whose names begin so, as some tools for MLX do."""
    norms = [n for n in layer if n.endswith("norm.weight") or "pre_fc_norm" in n]
    return layer | {name: layer[name] + 1 for name in norms if name.startswith(start)}


def save_standalone(folder: Path, family: str, tensors: dict[str, Any], **config: Any) -> Path:
    """A repository of the layer alone, as mlx-vlm writes it: bare names, whole norms."""
    about = {"model_type": f"{family}_mtp", "text_config": text_config(family), "block_size": 3}
    return save(folder, {"model.safetensors": tensors}, about | config)


def save_sidecar(folder: Path, family: str, layer: dict[str, Any]) -> Path:
    """A target's folder with the layer in a file beside it, under bare names."""
    target = {"language_model.model.norm.weight": np.ones(H, np.float32)}
    return save(
        folder,
        {"model.safetensors": target, "mtp/weights.safetensors": layer},
        CONFIGS[family] | {"quantization": {"group_size": 64, "bits": 4}},
    )


def quantized(layer: dict[str, np.ndarray], bits: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its matrices quantized in groups of 32, and what they are then."""
    packed, values = dict[str, Any](layer), dict[str, Any](layer)
    for name in [n for n, a in layer.items() if a.ndim == 2 and not n.startswith("fc")]:
        path, array = name.removesuffix(".weight"), mx.array(layer[name])
        weight, scales, biases = mx.quantize(array, group_size=32, bits=bits)
        packed |= {name: weight, f"{path}.scales": scales, f"{path}.biases": biases}
        values[name] = np.array(mx.dequantize(weight, scales, biases, group_size=32, bits=bits))
    return packed, values


def in_fp8(layer: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its matrices in FP8 with a scale for each block of 128 x 128, and what they are then."""
    packed, values = dict[str, Any](layer), dict[str, Any](layer)
    for name in [n for n in layer if n.endswith("proj.weight")]:
        scale = np.abs(layer[name]).max() / 200
        stored = mx.to_fp8(mx.array(layer[name]) / scale)
        shape = [-(-n // 128) for n in layer[name].shape]
        packed |= {name: stored, f"{name}_scale_inv": np.full(shape, scale, np.float32)}
        whole = (mx.from_fp8(stored, dtype=mx.float32) * scale).astype(mx.bfloat16)
        values[name] = np.array(whole.astype(mx.float32))
    return packed, values


class Pair(NamedTuple):
    """A target's folder with everything in it, and what its layer is made of."""

    folder: Path
    layer: dict[str, np.ndarray]
    model: Any


def make_target(family: str) -> Any:
    """The tiny random target of a family, of mlx-lm's class."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(CONFIGS[family]))
    noisy = [
        (name, value + 0.1 * mx.random.normal(value.shape)) if value.ndim == 1 else (name, value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(noisy)
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def save(
    folder: Path, files: dict[str, dict[str, Any]], config: dict[str, Any], **more: str
) -> Path:
    """Write safetensors files and a configuration; `more` is the files' metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file, tensors in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        arrays = {name: mx.array(value) for name, value in tensors.items()}
        mx.save_safetensors(str(folder / file), arrays, metadata=more or {"format": "mlx"})
    return folder


def save_original(
    folder: Path, family: str, layer: dict[str, np.ndarray], prefix: str = ""
) -> Path:
    """A checkpoint as its publisher writes it: two shards, an index, the layer in the second."""
    named = {prefix + published_name(family, name): value for name, value in layer.items()}
    rest = {f"model.layers.0.mlp.w{i}.weight": np.ones((64, 64), np.float32) for i in range(4)}
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    middle = {"model.layers.1.mlp.a.weight": np.ones((32, 32), np.float32)}
    files = {shards[0]: rest, shards[1]: middle | named}
    index = {name: file for file, tensors in files.items() for name in tensors}
    save(folder, files, CONFIGS[family], format="pt")
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def save_target(
    folder: Path, family: str, model: Any, layer: dict[str, np.ndarray] | None = None
) -> Path:
    """A target as MLX has it, and perhaps its layer as the publisher names and stores it."""
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    wrapper = "language_model." if family in ("qwen3_5", "qwen3_5_moe") else ""
    for name, value in (layer or {}).items():
        tensors[wrapper + published_name(family, name)] = value
    return save(folder, {"model.safetensors": tensors}, CONFIGS[family])


DISTURBANCE = 2.0  # of a target's layers, with which about half of what is drafted is right


def make_foresighted(family: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A target whose tokens mostly follow from the one before, and a layer that knows which.

    The layers of both disturb only a little what passes by them: the newest token's embedding,
    which `fc` hands on and the output layer of the target turns into the token that follows.
    """
    model, layer = make_target(family), random_layer(family)
    for name, value in tree_flatten(model.parameters()):
        if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
            model.load_weights([(name, DISTURBANCE * value)], strict=False)
    model.load_weights(
        [
            (name, mx.random.normal(value.shape, key=mx.random.key("lm_head" in name)))
            for name, value in tree_flatten(model.parameters())
            if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        ],
        strict=False,
    )
    final = next(a for n, a in tree_flatten(model.parameters()) if n.endswith("model.norm.weight"))
    whole = 1.0 if family in ZERO_CENTRED else 0.0
    for name in layer:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            layer[name] = 0.25 * layer[name]
    noise = np.random.default_rng(2).standard_normal((H, H)) / H**0.5
    parts = [np.eye(H), 0.2 * noise][:: -1 if family == "mimo" else 1]
    layer["fc.weight"] = np.hstack(parts).astype(np.float32)
    layer["pre_fc_norm_embedding.weight"] = np.full(H, 1 - whole, np.float32)
    layer["norm.weight"] = np.array(final) - whole
    mx.eval(model.parameters())
    return model, layer

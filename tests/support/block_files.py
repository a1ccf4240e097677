"""Tiny random heads that draft blocks, as each publisher writes them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

H, V, N = 32, 64, 6
IDS = [0, 2, 5]  # of the layers whose output is read
ROWS, RANK, MASK = 5, 8, 63
TARGET: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": H,
    "num_hidden_layers": N,
    "vocab_size": V,
    "rope_theta": 5000.0,
}
LAYER: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": H,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": V,
    "rope_theta": 5000.0,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
}
WINDOWS: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 6,
}


class Truth(NamedTuple):
    """What a reader must find out, beside the tensors."""

    root_predicts: bool = False
    causal: tuple[bool, ...] = (False, False, False)
    windows: tuple[int | None, ...] = (None, None, None)
    interleaved: bool = False
    from_root: bool = False
    markov: str = "none"
    sinks: bool = False
    scaling: dict[str, Any] | None = None
    boundaries: tuple[int, ...] = (1, 3, 6)


class Form(NamedTuple):
    """How a publisher writes such a head: its configuration, and which tensors it has besides."""

    config: dict[str, Any]
    truth: Truth
    more: tuple[str, ...] = ()
    n_drafted: int = V


_DFLASH = {"target_layer_ids": IDS, "mask_token_id": MASK}
_DEEPSPEC = LAYER | _DFLASH | {"block_size": ROWS, "num_anchors": 8, "num_target_layers": N}
_DEEPSPEC |= {"architectures": ["Qwen3DSparkModel"], "layer_types": ["full_attention"] * 3}
_SPECULATORS = {"transformer_layer_config": LAYER, "block_size": ROWS, "mask_token_id": MASK}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
_BIAS = {"markov_rank": RANK, "enable_confidence_head": True, "confidence_head_with_markov": True}
ANCHORED = Truth(root_predicts=True)

FORMS: dict[str, Form] = {
    "z-lab": Form(
        LAYER
        | {"architectures": ["DFlashDraftModel"], "block_size": ROWS, "dflash_config": _DFLASH},
        Truth(),
    ),
    "z-lab with windows": Form(
        LAYER | WINDOWS | {"block_size": ROWS, "dflash_config": _DFLASH},
        Truth(causal=(True, True, False), windows=(6, 6, None)),
    ),
    "z-lab, causal": Form(
        LAYER | {"dflash_config": _DFLASH | {"causal": True, "block_size": ROWS}},
        Truth(causal=(True, True, True)),
    ),
    "DeepSpec DFlash": Form(_DEEPSPEC | {"markov_rank": 0}, ANCHORED, ("copies",)),
    "DeepSpec DSpark": Form(
        _DEEPSPEC | _BIAS | {"markov_head_type": "vanilla"},
        ANCHORED._replace(markov="vanilla"),
        ("copies", "confidence"),
    ),
    "DeepSpec DSpark, gated": Form(
        _DEEPSPEC | _BIAS | {"markov_head_type": "gated"}, ANCHORED._replace(markov="gated")
    ),
    "DeepSpec DSpark, rnn": Form(
        _DEEPSPEC | _BIAS | {"markov_head_type": "rnn"}, ANCHORED._replace(markov="rnn")
    ),
    "LiquidAI DSpark": Form(
        LAYER
        | {"architectures": ["Lfm2DSparkDraftModel"], "block_size": ROWS, "markov_rank": RANK}
        | {"dflash_config": _DFLASH, "rope_is_neox_style": False},
        ANCHORED._replace(markov="vanilla", interleaved=True),
        ("confidence",),
    ),
    "SpecForge DSpark": Form(
        LAYER
        | {"architectures": ["DSparkDraftModel"], "block_size": ROWS}
        | {"rope_parameters": _YARN | {"rope_theta": 5000.0}}
        | {"dflash_config": _DFLASH | {"projector_type": "dspark", "markov_rank": RANK}},
        ANCHORED._replace(markov="vanilla", scaling=_YARN),
        ("confidence",),
    ),
    "NVIDIA DSpark": Form(
        LAYER
        | {"architectures": ["DSparkDraftModel"], "block_size": ROWS, "dspark_bonus_anchor": True}
        | {"markov_rank": RANK}
        | {"dflash_config": _DFLASH | {"causal": True, "swa_window_size": 6, "use_swa": True}},
        Truth(causal=(True,) * 3, windows=(6,) * 3, markov="vanilla", sinks=True),
    ),
    "speculators DFlash": Form(
        _SPECULATORS
        | {"speculators_model_type": "dflash", "aux_hidden_state_layer_ids": [1, 3, 6]},
        Truth(),
    ),
    "speculators DFlash, few tokens": Form(
        {
            "speculators_model_type": "dflash",
            **_SPECULATORS,
            "aux_hidden_state_layer_ids": [1, 3, 6],
            "transformer_layer_config": LAYER | WINDOWS,
            "sliding_window_non_causal": True,
            "draft_vocab_size": 40,
        },
        Truth(windows=(6, 6, None), from_root=True),
        ("copies",),
        40,
    ),
    "speculators DSpark": Form(
        _SPECULATORS
        | {"speculators_model_type": "dspark", "aux_hidden_state_layer_ids": [1, 3, 6]}
        | _BIAS
        | {"draft_vocab_size": 40, "transformer_layer_config": LAYER | WINDOWS},
        ANCHORED._replace(
            markov="vanilla", windows=(6, 6, None), causal=(True, True, False), from_root=True
        ),
        ("copies", "confidence"),
        40,
    ),
}


class Written(NamedTuple):
    """A head on disk, its target's configuration, and its tensors."""

    source: Path
    target: Path
    tensors: dict[str, np.ndarray]


def _shapes(form: Form) -> dict[str, tuple[int, ...]]:
    truth, found = form.truth, dict[str, tuple[int, ...]]()
    for i in range(3):
        found |= {
            f"layers.{i}.input_layernorm.weight": (H,),
            f"layers.{i}.post_attention_layernorm.weight": (H,),
            f"layers.{i}.self_attn.q_proj.weight": (64, H),
            f"layers.{i}.self_attn.k_proj.weight": (32, H),
            f"layers.{i}.self_attn.v_proj.weight": (32, H),
            f"layers.{i}.self_attn.o_proj.weight": (H, 64),
            f"layers.{i}.self_attn.q_norm.weight": (16,),
            f"layers.{i}.self_attn.k_norm.weight": (16,),
            f"layers.{i}.mlp.gate_proj.weight": (64, H),
            f"layers.{i}.mlp.up_proj.weight": (64, H),
            f"layers.{i}.mlp.down_proj.weight": (H, 64),
        }
        if truth.sinks:
            found[f"layers.{i}.self_attn.attention_sink_bias"] = (4,)
    found |= {"fc.weight": (H, 3 * H), "hidden_norm.weight": (H,), "norm.weight": (H,)}
    if truth.markov != "none":
        found["markov_head.markov_w1.weight"] = (V, RANK)
        found["markov_head.markov_w2.weight"] = (form.n_drafted, RANK)
    if truth.markov == "gated":
        found["markov_head.gate_proj.weight"] = (RANK, H + RANK)
        found["markov_head.gate_proj.bias"] = (RANK,)
    if truth.markov == "rnn":
        found["markov_head.joint_proj.weight"] = (3 * RANK, 2 * RANK + H)
        found["markov_head.joint_proj.bias"] = (3 * RANK,)
    if "confidence" in form.more:
        found |= {"confidence_head.proj.weight": (1, H + RANK), "confidence_head.proj.bias": (1,)}
    if "copies" in form.more:
        found["embed_tokens.weight"] = (V, H)
    if "copies" in form.more or form.n_drafted < V:
        found["lm_head.weight"] = (form.n_drafted, H)
    return found


def write(folder: Path, name: str, **changes: Any) -> Written:
    """Write a random head as a publisher would, its configuration changed as told."""
    form, rng = FORMS[name], np.random.default_rng(5)
    tensors = {}
    for tensor, shape in _shapes(form).items():
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        values = scale * rng.standard_normal(shape)
        tensors[tensor] = (values + (1.0 if "norm" in tensor else 0.0)).astype(np.float32)
    if form.n_drafted < V:
        ids = np.sort(rng.choice(V, form.n_drafted, replace=False))
        tensors["d2t"] = ids - np.arange(form.n_drafted)
        tensors["t2d"] = np.isin(np.arange(V), ids)
    source, target = folder / "published", folder / "target"
    for path, config in ((source, form.config | changes), (target, TARGET)):
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
    prefix = "model." if "LiquidAI" in name else ""
    arrays = {prefix + key: mx.array(value) for key, value in tensors.items()}
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    return Written(source, target, tensors)

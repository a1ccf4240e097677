"""What a folder is, told by the names and shapes of its tensors: a target, or a head of a dialect.

A configuration is believed only where tensors leave a choice: published architectures are often
wrong. What is known and cannot be run is refused by name, with the reason. A new dialect gets its
sign in `_announced`, if the configuration or a tensor gives it away, else in `_eagle_dialect`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mlx_eagle.convert import dialects
from mlx_eagle.convert.dialects import Dialect, parameter_name
from mlx_eagle.convert.mtp.layouts import LAYOUTS, family_of, head_names
from mlx_eagle.files.quoting import listed, one_line, quote_value
from mlx_eagle.files.safetensors import TensorInfo
from mlx_eagle.heads.config import ALGORITHMS, MODEL_TYPE

Manifest = dict[str, TensorInfo]
Shapes = Mapping[str, tuple[int, ...]]


class Kind(NamedTuple):
    """What a folder is: its label, its role, and how to read it or why it cannot be run."""

    label: str
    role: Literal["head", "target"]
    dialect: Dialect | None = None
    refusal: str = ""


_DFLASH2 = Kind(
    "DFlash 2 block head",
    "head",
    refusal="it needs grouped dynamic convolutions around attention and MLP, and its selector of "
    "candidates",
)
_DOMINO = Kind(
    "Domino block head",
    "head",
    refusal="it needs Domino's recurrent correction of a block",
)
_GEMMA4_BLOCK = Kind(
    "DeepSpec block head for Gemma 4",
    "head",
    refusal="its layers are Gemma 4's (sandwich norms, shared keys and values, GELU), not Qwen3's",
)
_GATED_BLOCK = Kind(
    "block head with gated attention",
    "head",
    refusal="it needs a gate for what each query attends to, as Qwen3.5's layers have it",
)
_STAGES = Kind(
    "DSpark stages of a DeepSeek model",
    "head",
    refusal="they are layers of that target, with its latent attention and several streams",
)
_MTP = Kind(
    "native multi-token-prediction layer",
    "head",
    refusal="it is a layer of its target, and of this one it is not known here what it computes",
)
_MLA = Kind(
    "EAGLE-3 head with multi-head latent attention",
    "head",
    refusal="latent attention (DeepSeek, Kimi) is not implemented for heads",
)
_GEMMA4 = Kind(
    "DeepSpec EAGLE-3 head for Gemma 4",
    "head",
    refusal="its layer is Gemma 4's (sandwich norms, shared keys and values, GELU), not Llama's",
)


def _head_of(dialect: Dialect) -> Kind:
    """Return the kind of a head that is written in a dialect."""
    return Kind(dialect.label, "head", dialect)


# What a speculators configuration calls its head, and what that is.
_SPECULATORS: dict[str, Kind] = {
    "eagle3": _head_of(dialects.SPECULATORS),
    "peagle": _head_of(dialects.SPECULATORS_PEAGLE),
    "dflash": _head_of(dialects.SPECULATORS_DFLASH),
    "dspark": _head_of(dialects.SPECULATORS_DSPARK),
    "dflash2": _DFLASH2,
    "mtp": _MTP,
}

# Keys of `eagle_config` that ModelOpt alone writes.
_MODELOPT_KEYS = {
    "next_layer_regular",
    "norm_before_fc",
    "parallel_draft_heads_num_layers",
    "parallel_draft_step",
    "use_aux_hidden_state",
    "use_input_layernorm_in_first_layer",
    "use_last_layernorm",
    "use_mtp_layernorm",
}


def identify_kind(config: dict[str, Any], manifest: Manifest) -> Kind:
    """Return what a folder with this configuration and these tensors is."""
    if config.get("model_type") == MODEL_TYPE:
        name = str(config.get("algorithm"))
        return Kind(f"converted {ALGORITHMS.get(name, 'head')}", "head")
    if kind := _mtp_layer(config, manifest):
        return kind
    shapes = {parameter_name(name): info.shape for name, info in manifest.items()}
    if kind := _block_head(config, shapes):
        return kind
    if kind := _announced(config, shapes):
        return kind
    if not _is_head(shapes, manifest):
        return Kind("MLX target" if "quantization" in config else "Hugging Face target", "target")
    if any("kv_a_proj_with_mqa" in name or "q_a_proj" in name for name in shapes):
        return _MLA
    if method := _quantization_method(config, shapes):
        return _foreign("EAGLE head", method)
    return _head_of(_eagle_dialect(config, shapes, manifest))


def _mtp_layer(config: dict[str, Any], manifest: Manifest) -> Kind | None:
    """Return the kind of a target's own layer, if nothing else is there; else None."""
    family, n_found = family_of(config), len(head_names(manifest, config))
    if not family or not n_found or n_found < len(manifest):
        return None
    layout = LAYOUTS[family]
    if not layout.refusal:
        return _head_of(dialects.MTP)
    return Kind(f"{_MTP.label} of {layout.label}", "head", refusal=layout.refusal)


def _block_head(config: dict[str, Any], shapes: Shapes) -> Kind | None:
    """Return the kind of a head that drafts a block of tokens at once; None for all others."""
    architectures, model_type = str(config.get("architectures")), str(config.get("model_type"))
    own = config.get("dflash_config")
    settings = config | (own if isinstance(own, dict) else {})
    named = config.get("speculators_model_type")
    kind = _SPECULATORS.get(named) if isinstance(named, str) else None
    is_speculators = kind is not None and (kind is _DFLASH2 or _drafts_blocks(kind))
    looks = re.search("DFlash|DSpark|Domino", architectures) or model_type.startswith("dflash")
    is_unnamed = "block_size" in config and {"hidden_norm.weight", "fc.weight"} <= set(shapes)
    if not (is_speculators or looks or isinstance(own, dict) or is_unnamed):
        return None
    if refused := _refused_block(settings, architectures, model_type, shapes):
        return refused
    if method := _quantization_method(config, shapes):
        return _foreign("block head", method)
    if is_speculators:
        return kind
    if "Qwen3DSparkModel" in architectures or "Qwen3DFlashModel" in architectures:
        return _head_of(dialects.DEEPSPEC_BLOCK)
    has_bias = "markov_head.markov_w1.weight" in shapes
    return _head_of(dialects.DSPARK if has_bias else dialects.DFLASH)


def _drafts_blocks(kind: Kind) -> bool:
    return kind.dialect is not None and kind.dialect.algorithm in dialects.BLOCKS


def _refused_block(
    settings: dict[str, Any], architectures: str, model_type: str, shapes: Shapes
) -> Kind | None:
    """Return the kind of a block head that is known and cannot be run."""
    if "dflash2" in model_type or any("_conv.base_kernel" in name for name in shapes):
        return _DFLASH2
    if any(name.startswith("candidate_selector.") for name in shapes):
        return _DFLASH2
    if "Domino" in architectures or settings.get("projector_type") == "domino":
        return _DOMINO
    if any("main_proj." in name for name in shapes):
        return _STAGES
    if "Gemma4" in architectures or any("layer_scalar" in name for name in shapes):
        return _GEMMA4_BLOCK
    queries = shapes.get("layers.0.self_attn.q_proj.weight", ())
    output = shapes.get("layers.0.self_attn.o_proj.weight", ())
    if len(queries) == len(output) == 2 and queries[0] == 2 * output[1]:
        return _GATED_BLOCK
    return None


def _foreign(label: str, method: str) -> Kind:
    """Return the kind of a head whose weights another library has quantized."""
    refusal = "MLX cannot read these weights; use the publisher's 16-bit head"
    return Kind(f"{label} quantized as {method}", "head", refusal=refusal)


def _announced(config: dict[str, Any], shapes: Shapes) -> Kind | None:
    """Return the kind of a drafter that its configuration or a tensor of its own gives away."""
    architectures = str(config.get("architectures"))
    if "speculators_model_type" in config:
        name = config["speculators_model_type"]
        label = f"speculators head of the type {quote_value(name)}"
        known = listed(name for name, kind in _SPECULATORS.items() if kind.dialect)
        unknown = Kind(label, "head", refusal=f"only the types {known} are supported")
        return _SPECULATORS.get(name, unknown) if isinstance(name, str) else unknown
    if "Gemma4Eagle3Model" in architectures:
        return _GEMMA4
    deepspec_keys = {"ttt_length", "target_layer_ids", "num_target_layers"}
    if "Qwen3Eagle3Model" in architectures or deepspec_keys <= set(config):
        return _head_of(dialects.DEEPSPEC)
    if "mask_hidden" in shapes:
        return _head_of(dialects.PEAGLE)
    medusa = r"medusa_heads?\.|lm_heads\.|\d+\.\d+\.linear\.weight$"
    if "medusa_num_heads" in config or any(re.match(medusa, name) for name in shapes):
        return _head_of(dialects.MEDUSA)
    mtp = r"mtp\.|layers\.\d+\.(eh_proj|enorm|hnorm)\."
    if shapes and all(re.match(mtp, name) for name in shapes):
        return _MTP
    return None


def _is_head(shapes: Shapes, manifest: Manifest) -> bool:
    """Say whether tensors that name no drafter are those of an EAGLE head."""
    if any("midlayer." in name for name in manifest):
        return True
    if "fc.weight" in shapes or "layers.0.hidden_norm.weight" in shapes:
        return True
    queries = shapes.get("layers.0.self_attn.q_proj.weight", ())
    output = shapes.get("layers.0.self_attn.o_proj.weight", ())
    return len(queries) == len(output) == 2 and queries[1] == 2 * output[0]


def _quantization_method(config: dict[str, Any], shapes: Shapes) -> str:
    """Return the method by which another library quantized a head, or nothing."""
    settings = config.get("quantization_config")
    if isinstance(settings, dict) and settings:
        return one_line(settings.get("quant_method") or settings.get("quant_algo") or "unknown", 40)
    scaled = any(name.endswith(("weight_scale", "input_scale", "weight_packed")) for name in shapes)
    return "FP8 or NVFP4" if scaled else ""


def _eagle_dialect(config: dict[str, Any], shapes: Shapes, manifest: Manifest) -> Dialect:
    """Return the dialect of a head of the EAGLE family."""
    fc, queries = shapes.get("fc.weight", ()), shapes.get("layers.0.self_attn.q_proj.weight", ())
    if len(fc) == len(queries) == 2 and fc[1] == 2 * fc[0] and queries[1] == fc[0]:
        return dialects.EAGLE
    architectures, midlayer = str(config.get("architectures")), "midlayer." in str(list(manifest))
    own = config.get("eagle_config")
    if isinstance(own, dict) and (not midlayer or set(own) & _MODELOPT_KEYS):
        return dialects.MODELOPT
    if "aux_hidden_states_layer_ids" in config or "Eagle3LlamaForCausalLM" in architectures:
        return dialects.ANGELSLIM
    if any(name.startswith("fc_norm.") for name in shapes):
        return dialects.EAGLE31
    if "LlamaForCausalLMEagle3" in architectures and not midlayer:
        return dialects.MODELOPT
    if "LlamaForCausalLMEagle3" in architectures or isinstance(own, dict):
        return dialects.SPECFORGE
    return dialects.SAFEAILAB if midlayer else dialects.UNNAMED

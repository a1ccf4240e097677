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
from mlx_eagle.files.quoting import one_line, quote_value
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


_BLOCK = Kind(
    "block-diffusion drafter (DFlash, DSpark or Domino)",
    "head",
    refusal="it denoises a block of tokens at once, which is another algorithm than EAGLE's",
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
    **dict.fromkeys(("dflash", "dflash2", "dspark"), _BLOCK),
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
    if kind := _announced(config, shapes):
        return kind
    if not _is_head(shapes, manifest):
        return Kind("MLX target" if "quantization" in config else "Hugging Face target", "target")
    if "block_size" in config:
        return _BLOCK
    if any("kv_a_proj_with_mqa" in name or "q_a_proj" in name for name in shapes):
        return _MLA
    if method := _quantization_method(config, shapes):
        return Kind(
            f"EAGLE head quantized as {method}",
            "head",
            refusal="MLX cannot read these weights; use the publisher's 16-bit head",
        )
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


def _announced(config: dict[str, Any], shapes: Shapes) -> Kind | None:
    """Return the kind of a drafter that its configuration or a tensor of its own gives away."""
    architectures = str(config.get("architectures"))
    if "speculators_model_type" in config:
        name = config["speculators_model_type"]
        label = f"speculators head of the type {quote_value(name)}"
        unknown = Kind(label, "head", refusal="only the types eagle3 and peagle are supported")
        return _SPECULATORS.get(name, unknown) if isinstance(name, str) else unknown
    if "Gemma4Eagle3Model" in architectures:
        return _GEMMA4
    deepspec_keys = {"ttt_length", "target_layer_ids", "num_target_layers"}
    if "Qwen3Eagle3Model" in architectures or deepspec_keys <= set(config):
        return _head_of(dialects.DEEPSPEC)
    if "dflash_config" in config or re.search("DFlash|DSpark|Domino", architectures):
        return _BLOCK
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

"""Whose multi-token prediction layer a folder holds, and what its tensors are called.

A `Layout` is a row of data for each family of targets. Families that are known and cannot be run
are refused by name, with what they would need.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from mlx_eagle.files.json_files import language_config

# What wrappers of language models put in front of all names.
_WRAPPERS = re.compile(r"(?:language_model\.|model\.)+")
# Names in DeepSeek's order, which GLM has as well, and those of MiMo; ours are Qwen's.
_RENAMES = {
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "eh_proj": "fc",
    "shared_head.norm": "norm",
    "shared_head.head": "lm_head",
    "embed_tokens": "embed_tokens",
    "token_layernorm": "pre_fc_norm_embedding",
    "hidden_layernorm": "pre_fc_norm_hidden",
    "input_proj": "fc",
    "final_layernorm": "norm",
}
NORMS = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")  # outside of the block
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")


class Layout(NamedTuple):
    """How the layers of one family are to be read.

    Attributes:
        label: the family, for people.
        zero_centred: its publisher stores gains of norms as differences from 1.
        hidden_first: `fc` reads the hidden state before the embedding.
        refusal: why it cannot be run; "" if it can.
    """

    label: str
    zero_centred: bool = False
    hidden_first: bool = False
    refusal: str = ""


# By the target's model_type, without "_text" and "_mtp" at its end.
LAYOUTS = {
    "qwen3_5": Layout("Qwen3.5", zero_centred=True),
    "qwen3_5_moe": Layout("Qwen3.5 MoE", zero_centred=True),
    "qwen3_next": Layout("Qwen3-Next", zero_centred=True),
    "glm4_moe": Layout("GLM-4.5"),
    "glm4_moe_lite": Layout("GLM-4.7-Flash"),
    "mimo": Layout("MiMo", hidden_first=True),
    **dict.fromkeys(
        ("deepseek_v3", "deepseek_v32", "kimi_k3", "glm_moe_dsa", "glm5_next"),
        Layout("DeepSeek", refusal="it needs that target's latent and sparse attention"),
    ),
    "deepseek_v4": Layout("DeepSeek-V4", refusal="it recycles several streams (hyper-connections)"),
    "deepseek_v41": Layout("DeepSeek-V4.1", refusal="its mtp tensors are stages of DSpark"),
    "qwen4_exp": Layout("Qwen3.8-Flash-Next", refusal="it recycles several streams"),
    "nemotron_h": Layout("Nemotron-H", refusal="it is two half layers, attention and experts"),
    **dict.fromkeys(
        ("mimo_v2_flash", "mimo_v2", "step3p5", "step3p7", "minimax_m3_vl", "minimax_m3"),
        Layout("MiMo-V2, Step or MiniMax", refusal="it is a layer of its own for every step"),
    ),
    "ernie4_5_moe": Layout("ERNIE-4.5", refusal="it needs the target's own norm at its output"),
    "longcat_flash": Layout("LongCat-Flash", refusal="it needs latent attention of its own kind"),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        Layout("Gemma 4 assistant", refusal="it reads the target's own keys and values"),
    ),
}


def family_of(config: dict[str, Any]) -> str:
    """Return the model_type of the target whose layer a configuration describes, "" if none."""
    for part in (language_config(config), config):
        name = re.sub(r"(_text|_mtp)+$", "", str(part.get("model_type")))
        if name in LAYOUTS:
            return name
    return ""


def is_standalone(config: dict[str, Any]) -> bool:
    """Say whether a configuration is that of a repository that holds such a layer alone."""
    return str(config.get("model_type")).endswith("_mtp") or "assistant" in str(
        config.get("model_type")
    )


def head_parameter(name: str, n_layers: int) -> str | None:
    """Return the parameter of `MtpHead` that a tensor of a whole checkpoint stands for.

    Args:
        name: as published.
        n_layers: of the target; layers after them are what it is trained with besides.

    Returns:
        Its name in Qwen's manner, experts and all; None for a tensor of the target.
    """
    name = _WRAPPERS.sub("", name, count=1) if _WRAPPERS.match(name) else name
    if name.startswith("mtp."):
        return name.removeprefix("mtp.")
    found = re.match(r"mtp_layers\.(\d+)\.", name) or re.match(r"layers\.(\d+)\.", name)
    if found is None:
        return None
    index = int(found[1]) - (0 if name.startswith("mtp_") else n_layers)
    if index < 0:
        return None
    rest = name[found.end() :]
    for theirs, ours in _RENAMES.items():
        if rest.startswith(theirs + "."):
            return f"{'' if index == 0 else f'{index}.'}{ours}{rest.removeprefix(theirs)}"
    return f"layers.{index}.{rest}"


def standalone_parameter(name: str) -> str:
    """Return the parameter of `MtpHead` that a tensor of a repository of its own stands for."""
    return name.removeprefix("mtp.")


def is_norm(parameter: str) -> bool:
    """Say whether a parameter is the gain of one of the norms that may be zero-centred."""
    path, _, kind = parameter.rpartition(".")
    return kind == "weight" and (path in NORMS or path.rpartition(".")[2] in LAYER_NORMS)


def head_names(names: Iterable[str], config: dict[str, Any]) -> dict[str, str]:
    """Return the tensors of a checkpoint that are its multi-token prediction layer.

    Args:
        names: of all its tensors.
        config: its configuration.

    Returns:
        Parameters of `MtpHead` by published names; nothing where there is no such layer.
    """
    if is_standalone(config):
        return {name: standalone_parameter(name) for name in names}
    n_layers = language_config(config).get("num_hidden_layers")
    n_layers = n_layers if type(n_layers) is int else 1 << 20
    found = {name: head_parameter(name, n_layers) for name in names}
    return {name: ours for name, ours in found.items() if ours is not None}

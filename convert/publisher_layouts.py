"""What each publisher's layout can say about a head: the facts that it takes for granted.

A layout is sound for a head only where every reader of it runs the same forward pass. So a fact
counts as said if the publisher's own code, or the engines that the layout is for, act on it; that
our own reader would find it in the files is not enough. How a head is written down is in
`layout_files.py`.
"""

import json
from typing import Any

from mlx_eagle.convert.taps import default_taps
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.heads.config import ALGORITHMS, HeadConfig

# The names of the layouts, and who reads them.
LAYOUTS = {
    "safeailab": "SafeAILab's EAGLE",
    "specforge": "SGLang",
    "speculators": "vLLM, speculators, mlx-vlm",
}

# What no layout has a key or a tensor for; the norms and the output layer are always there.
_EAGLE3: dict[str, Any] = {
    **dict.fromkeys(("fuse_taps", "input_layernorm", "hidden_norm", "final_norm"), True),
    "own_lm_head": True,
    **dict.fromkeys(("double_norm", "fc_bias", "rope_interleaved"), False),
}
# One layer as Llama has it, and the flow of the first EAGLE-3 heads.
_ONE_LAYER = _EAGLE3 | {
    "num_hidden_layers": 1,
    **dict.fromkeys(("norm_before_fc", "norm_before_residual", "qk_norm"), False),
    **dict.fromkeys(("attention_bias", "attention_output_bias", "mlp_bias"), False),
}
_EAGLE: dict[str, Any] = {
    **dict.fromkeys(("fuse_taps", "input_layernorm", "hidden_norm", "final_norm"), False),
    **dict.fromkeys(("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output"), False),
    **dict.fromkeys(("double_norm", "rope_interleaved", "own_lm_head", "qk_norm"), False),
    **dict.fromkeys(("attention_output_bias", "mlp_bias"), False),
}

# By layout and algorithm: the facts that have one value only.
_FIXED: dict[str, dict[str, dict[str, Any]]] = {
    "safeailab": {
        "eagle": _EAGLE,
        "eagle3": _ONE_LAYER | {"fc_norm": False, "norm_output": False},
    },
    "specforge": {"eagle3": _ONE_LAYER},
    "speculators": {"eagle3": _EAGLE3, "p-eagle": _EAGLE3 | {"own_embedding": True}},
}

# Targets whose ids SGLang reads as boundaries, unless the first of them is 1.
_READ_AS_BOUNDARIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")


def find_unsupported(layout: str, head: HeadConfig, target: TargetFacts) -> list[str]:
    """Return what is true about a head and cannot be said in a layout; each as `x is y`.

    Args:
        layout: one of LAYOUTS.
        head: the facts about the head.
        target: what it drafts for.
    """
    fixed = _FIXED[layout].get(head.algorithm)
    if fixed is None:
        return [f"it is of the kind {ALGORITHMS[head.algorithm]}"]
    rules = {
        "safeailab": _safeailab_rules,
        "specforge": _specforge_rules,
        "speculators": _speculators_rules,
    }
    all_rules = _common_rules(head) | rules[layout](head, target)
    wrong = [_is(name, head) for name, value in fixed.items() if getattr(head, name) != value]
    return wrong + [reason for reason, holds in all_rules.items() if not holds]


def _is(name: str, head: HeadConfig) -> str:
    return f"{name} is {json.dumps(getattr(head, name))}"


def _listed_taps(head: HeadConfig) -> str:
    return f"taps are {', '.join(map(str, head.taps))}"


def _common_rules(head: HeadConfig) -> dict[str, bool]:
    """Return what no layout can say, and whether this head is without it."""
    return {
        f"{_is('rope_dims', head)} of {head.head_dim}": head.rope_dims == head.head_dim,
        f"hidden_size is not the target's {head.target_hidden_size}": (
            head.hidden_size == head.target_hidden_size
            or (head.algorithm != "eagle" and head.own_embedding)
        ),
    }


def _safeailab_rules(head: HeadConfig, target: TargetFacts) -> dict[str, bool]:
    """Return what SafeAILab's code decides by itself; its scaled rope has one base.

    It reads no `head_dim`: query heads divide the width among them, or it raises.
    """
    scaling = head.rope_scaling
    is_scaled_alike = scaling is None or (
        set(scaling) == {"rope_type", "factor"}
        and (scaling["rope_type"], head.rope_theta) == ("linear", 10000)
    )
    default = default_taps(target.num_hidden_layers)
    same_vocabulary = head.draft_vocab_size == head.target_vocab_size
    width = f"{head.hidden_size / head.num_attention_heads:g}"
    return {
        f"{_is('head_dim', head)} with {head.num_attention_heads} query heads, not {width}": (
            head.head_dim * head.num_attention_heads == head.hidden_size
        ),
        _is("sliding_windows", head): not any(head.sliding_windows),
        f"{_is('rope_scaling', head)} with the base {head.rope_theta:g}": is_scaled_alike,
        f"{_listed_taps(head)}, not {', '.join(map(str, default))}": (
            head.algorithm == "eagle" or head.taps == default
        ),
        _is("draft_vocab_size", head): head.algorithm != "eagle" or same_vocabulary,
    }


def _specforge_rules(head: HeadConfig, target: TargetFacts) -> dict[str, bool]:
    """Return what SGLang takes from the target, or reads in two ways.

    It reads ids of layers, one less than boundaries, and takes embeddings of its own only for a
    head of another width. `norm_output` has had two meanings; beside `fc_norm` it has one.
    """
    n = target.num_hidden_layers
    ids, default = tuple(b - 1 for b in head.taps), default_taps(n)
    as_layers = ids[0] >= 0 and ids[-1] < n and ids != default
    if target.model_type in _READ_AS_BOUNDARIES:
        as_layers = as_layers and ids[0] == 1
    is_wide = head.hidden_size != head.target_hidden_size
    return {
        _is("sliding_windows", head): not any(head.sliding_windows),
        _listed_taps(head): head.taps == default or (len(ids) == 3 and as_layers),
        _is("own_embedding", head): head.own_embedding == is_wide,
        f"{_is('norm_output', head)} without fc_norm": not head.norm_output or head.fc_norm,
    }


def _speculators_rules(head: HeadConfig, target: TargetFacts) -> dict[str, bool]:
    """Return what the library's layers, Llama's and Qwen3's, do not have.

    Ids that are one less than the default's boundaries are often ids of layers in this key, and
    read as such.
    """
    windows = {window for window in head.sliding_windows if window is not None}
    n = target.num_hidden_layers
    misread = tuple(b + 1 for b in head.taps) == default_taps(n)
    return {
        "norm_before_fc and fc_norm are both true": not (head.norm_before_fc and head.fc_norm),
        f"{_is('attention_bias', head)}, and {_is('attention_output_bias', head)}": (
            head.attention_bias == head.attention_output_bias
        ),
        f"{_is('mlp_bias', head)} beside norms of queries and keys": not (
            head.mlp_bias and head.qk_norm
        ),
        _is("sliding_windows", head): len(windows) <= 1,
        _listed_taps(head): head.taps[-1] <= n and not misread,
    }

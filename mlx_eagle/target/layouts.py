"""Tensors of files in a layout that mlx-lm's classes do not read, mostly transformers'.

Each rule says which names it takes and what they become; a file that has none of them is left as it
is. mlx-lm's own `sanitize` runs afterwards.
"""

import re

import mlx.core as mx

Weights = dict[str, mx.array]


def relayout(model_type: str, weights: Weights) -> Weights:
    """Return weights in a layout that mlx-lm's class of this type reads."""
    if model_type == "gpt_oss" and any(_PACKED.search(name) for name in weights):
        return {key: value for name, a in weights.items() for key, value in _gpt_oss(name, a)}
    if model_type == "qwen3_next":  # which drops the layer for drafting only beside raw experts
        return {name: array for name, array in weights.items() if not name.startswith("mtp.")}
    return weights


# Experts of gpt-oss in 16 or 32 bits; in mxfp4 they end in _blocks and _scales.
_PACKED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")


def _gpt_oss(name: str, array: mx.array) -> list[tuple[str, mx.array]]:
    """Return experts [E, in, out] as [E, out, in], gate and up apart, which are interleaved."""
    if name.endswith("experts.gate_up_proj"):
        stem, rows = name.removesuffix("gate_up_proj"), array.swapaxes(1, 2)
        return [(f"{stem}gate_proj.weight", rows[:, ::2]), (f"{stem}up_proj.weight", rows[:, 1::2])]
    if name.endswith("experts.gate_up_proj_bias"):
        stem = name.removesuffix("gate_up_proj_bias")
        return [(f"{stem}gate_proj.bias", array[:, ::2]), (f"{stem}up_proj.bias", array[:, 1::2])]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", array.swapaxes(1, 2))]
    if name.endswith("experts.down_proj_bias"):
        return [(f"{name.removesuffix('_bias')}.bias", array)]
    return [(name, array)]

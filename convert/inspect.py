"""What a folder is, from its configuration and headers: no weights are read, mlx-lm not imported.

It describes; whether a description is good enough to convert or run is decided elsewhere.
"""

import math
from pathlib import Path
from typing import Any

from mlx_eagle.convert.checkpoint import (
    find_weights,
    language_config,
    read_count,
    read_json,
    read_manifest,
    source_name,
)
from mlx_eagle.convert.dialects import CONVERTED_HEAD, FLOATS, Kind, Manifest, measure, recognise
from mlx_eagle.errors import CheckpointError

_HEAD_KEYS = (
    *("format_version", "algorithm", "hidden_size", "target_hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"),
    *("rope_scaling", "rope_interleaved", "max_position_embeddings", "taps", "draft_vocab_size"),
    *("target_vocab_size", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"),
    *("source", "target"),
)
_TARGET_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def describe(folder: Path) -> dict[str, Any]:
    """Return the facts about a head or target, converted or not, ready for JSON.

    Always there: `name`, `kind`, `role` ("head" or "target"), `converted`, `parameters`, `bytes`
    (of the weight files), `types` (tensors of each type), `quantization` (or None). The other
    facts depend on the kind.

    Raises:
        CheckpointError: if the folder has no configuration or weights, or they are malformed.
    """
    config, manifest = read_json(folder / "config.json"), read_manifest(folder)
    kind = recognise(config, manifest)
    quantization = _quantization(config)
    facts: dict[str, Any] = {
        "name": source_name(folder),
        "kind": kind.label,
        "role": kind.role,
        "converted": config.get("model_type") == CONVERTED_HEAD or kind.label == "MLX target",
        "parameters": _count_parameters(manifest, config.get("quantization")),
        "bytes": sum(file.stat().st_size for file in find_weights(folder)),
        "types": _count_types(manifest),
        "quantization": quantization,
    }
    if config.get("model_type") == CONVERTED_HEAD:
        return facts | {key: _shallow(config.get(key)) for key in _HEAD_KEYS}
    return facts | (_raw_head(kind, manifest) if kind.role == "head" else _target(config))


def _shallow(value: Any, depth: int = 3) -> Any:
    """Return a JSON value without what is nested deeper than converters nest."""
    if isinstance(value, dict | list) and not depth:
        return "..."
    if isinstance(value, dict):
        return {key: _shallow(item, depth - 1) for key, item in value.items()}
    return [_shallow(item, depth - 1) for item in value] if isinstance(value, list) else value


def _raw_head(kind: Kind, manifest: Manifest) -> dict[str, Any]:
    """Return the sizes of a published head, or why it cannot be converted."""
    if kind.dialect is None:
        return {"convertible": False, "reason": "heads of this kind are not supported yet"}
    try:
        widths = measure(manifest, kind.dialect)
    except CheckpointError as error:
        return {"convertible": False, "reason": str(error)}
    return {
        "convertible": True,
        "hidden_size": widths.hidden,
        "intermediate_size": widths.mlp,
        "draft_vocab_size": widths.draft,
        "fc_input_size": widths.taps,
    }


def _target(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a target, as far as its configuration tells them."""
    language = language_config(config) | {"model_type": config.get("model_type")}
    return {key: _shallow(language.get(key)) for key in _TARGET_KEYS}


def _quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return bits and group size of MLX, or the method of another library, or None."""
    ours, theirs = config.get("quantization"), config.get("quantization_config")
    if isinstance(ours, dict):
        return {key: _shallow(ours[key]) for key in ("bits", "group_size", "mode") if key in ours}
    return {"method": str(theirs.get("quant_method"))} if isinstance(theirs, dict) else None


def _count_parameters(manifest: Manifest, quantization: Any) -> int:
    """Count the weights: a packed word of a quantized layer counts as the weights in it."""
    group_sizes = quantization if isinstance(quantization, dict) else {}
    total = 0
    for name, info in manifest.items():
        layer, _, parameter = name.rpartition(".")
        packed = manifest.get(f"{layer}.weight", info).dtype == "U32"
        if packed and parameter == "scales":
            own = group_sizes.get(layer)
            group_size = read_count(own if isinstance(own, dict) else group_sizes, "group_size", 64)
            total += math.prod(info.shape) * group_size
        elif not packed and info.dtype in FLOATS:
            total += math.prod(info.shape)
    return total


def _count_types(manifest: Manifest) -> dict[str, int]:
    """Return how many tensors there are of each type, the most frequent first."""
    dtypes = [info.dtype for info in manifest.values()]
    return {dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes), key=dtypes.count)[::-1]}
